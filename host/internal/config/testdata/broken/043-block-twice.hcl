log {
  level = "info"
}
log {
  level = "debug"
}
receive_connector "a" {
  listen = ["127.0.0.1:26"]
  limits {
    max_recipients = 5
  }
  limits {
    max_recipients = 6
  }
}
