receive_connector "a" {
  listen = ["127.0.0.1:26"]
}
receive_connector "a" {
  listen = ["127.0.0.1:27"]
}
accepted_domain "Shared.example" {}
accepted_domain "shared.example" {}
