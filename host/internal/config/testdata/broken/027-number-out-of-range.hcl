receive_connector "a" {
  listen = ["127.0.0.1:26"]
  limits {
    max_recipients      = 0
    max_protocol_errors = 2.5
    max_connections     = 1e99
  }
}
