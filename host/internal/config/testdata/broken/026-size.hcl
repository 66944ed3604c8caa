receive_connector "a" {
  listen = ["127.0.0.1:26"]
  limits {
    max_message_size = "36 megs"
    max_header_size  = "1"
  }
}
