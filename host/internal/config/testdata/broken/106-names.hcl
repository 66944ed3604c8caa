tls "../public" {}
receive_connector "" {
  listen = ["127.0.0.1:26"]
}
send_connector "a\nb" {
  address_spaces = ["x.example"]
  dns            = true
}
