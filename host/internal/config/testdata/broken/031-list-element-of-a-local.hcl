locals {
  hubs = ["10.30.0.11", "10.30.0.1l"]
}
receive_connector "a" {
  listen = ["127.0.0.1:26"]
  remote = local.hubs
}
