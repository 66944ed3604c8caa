receive_connector "a" {
  listen = ["127.0.0.1:26"]
}
queue {
  expire_after = "1d"
}
