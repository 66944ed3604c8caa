dns {
  resolvers = ["127.0.0.1", "127.0.0.1:53", "9.9.9.9:0"]
}
metrics {
  listen = "0.0.0.0:9090"
}
queue {
  delay_notice = "3d"
}
