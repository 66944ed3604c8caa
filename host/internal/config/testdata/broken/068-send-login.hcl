send_connector "a" {
  address_spaces = ["x.example"]
  smart_hosts    = ["hub.example.org"]
  username       = "edge"
}
send_connector "b" {
  address_spaces = ["y.example"]
  smart_hosts    = ["hub.example.org"]
  password       = "hunter2"
}
send_connector "c" {
  address_spaces = ["z.example"]
  smart_hosts    = ["hub.example.org"]
  username       = "edge"
  password       = sensitive("hunter2")
}
