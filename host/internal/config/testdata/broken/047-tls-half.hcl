tls "a" {
  certificate = "tls/good.crt"
}
tls "b" {
  key = "tls/good.key"
}
