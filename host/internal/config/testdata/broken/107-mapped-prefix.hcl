receive_connector "a" {
  listen = ["127.0.0.1:26"]
  remote = ["::ffff:10.0.0.0/104", "::ffff:10.0.0.1"]
}
