receive_connector "a" {
  listen = ["127.0.0.1:26"]
  limits {
    max_message_size   = "100 KB"
    max_header_size    = "200 KB"
    timeout            = "1m"
    inactivity_timeout = "2m"
  }
}
receive_connector "b" {
  listen = ["127.0.0.1:0"]
}
