send_connector "a" {
  address_spaces = ["x.example"]
  dns            = true
  port           = 70000
  source_ip      = "eth0"
}
