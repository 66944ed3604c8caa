host {
  name = "edge.example.org"
  event_budget {
    conect = "10s"
  }
}
receive_connector "a" {
  listen = ["127.0.0.1:26", "nowhere"]
  tls    = "none"
}
send_connector "out" {
  address_spaces = ["x.example"]
}
agent "fake" {
  priority = 10
  timeout  = "5"
  config {
    treshold = 5
    dnsbl "zen.example" {
      codes = ["127.0.0.2", 3]
    }
  }
}
