receive_connector "a" {
  listen = ["127.0.0.1:27"]
}
queue {
  expire_after = "2d"
}
