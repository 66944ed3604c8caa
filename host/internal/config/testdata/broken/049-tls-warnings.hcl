tls "expired" {
  certificate = "tls/expired.crt"
  key         = "tls/readable.key"
}
