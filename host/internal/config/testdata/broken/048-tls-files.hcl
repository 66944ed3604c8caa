tls "missing" {
  certificate = "tls/missing.crt"
  key         = "tls/missing.key"
}
tls "folder" {
  certificate = "tls"
  key         = "tls/good.key"
}
tls "mismatch" {
  certificate = "tls/good.crt"
  key         = "tls/other.key"
}
tls "not-pem" {
  certificate = "prefixes.txt"
  key         = "tls/good.key"
}
