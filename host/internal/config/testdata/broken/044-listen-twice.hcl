receive_connector "a" {
  listen = ["127.0.0.1:26", "127.0.0.1:26"]
}
receive_connector "b" {
  listen = [":26"]
}
receive_connector "c" {
  listen = ["[::1]:26"]
}
