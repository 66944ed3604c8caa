receive_connector "all" {
  listen = ["127.0.0.1:26"]
}
receive_connector "hubs" {
  listen = ["127.0.0.1:26"]
  remote = ["10.0.0.0/8", "192.0.2.1"]
}
receive_connector "one" {
  listen = ["127.0.0.1:26"]
  remote = ["10.0.0.1"]
}
receive_connector "again" {
  listen = ["127.0.0.1:26"]
  remote = ["192.0.2.1", "192.0.2.2"]
}
receive_connector "everybody" {
  listen = ["127.0.0.1:26"]
}
