receive_connector "a" {
  listen     = ["127.0.0.1:26"]
  remote     = ["10.1.2.3/8", "10.0.0.0/33", "10.0.0.256", "fe80::1%eth0", "10.0.0.0/8"]
  proxy_from = ["lb.example.org"]
}
