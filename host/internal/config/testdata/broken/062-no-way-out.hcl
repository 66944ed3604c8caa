send_connector "out" {
  address_spaces = ["x.example"]
}
send_connector "off" {
  address_spaces = ["x.example"]
  dns            = false
}
