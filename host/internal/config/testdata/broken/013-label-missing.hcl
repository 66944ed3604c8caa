receive_connector {
  listen = ["127.0.0.1:26"]
}
