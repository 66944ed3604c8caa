send_connector "out" {
  address_spaces = ["x.example"]
  dns            = true
  smart_hosts    = ["hub.example.org"]
  drop_directory = "drop"
}
