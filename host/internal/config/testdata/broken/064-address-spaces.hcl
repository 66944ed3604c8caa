send_connector "out" {
  address_spaces = ["x.example;0", "*x.example", "y.example;many", "a..b", "*.ok.example;10"]
  dns            = true
}
