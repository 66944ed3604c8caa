send_connector "out" {
  address_spaces = ["x.example"]
  smart_hosts    = ["hub.example.org:0", "10.0.0.300", "[10.0.0.1]", "hub_1.example.org:25", "ex ample", ""]
}
send_connector "empty" {
  address_spaces = ["x.example"]
  smart_hosts    = []
}
