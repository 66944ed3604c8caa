# alone
host {
  name = "edge.example.org"
}
receive_connector "a" {
  listen = ["127.0.0.1:26"]
}
accepted_domain "routed.example" {}
accepted_domain "sub.routed.example" {}
accepted_domain "*.wild.example" {}
accepted_domain "nowhere.example" {}
accepted_domain "wild.example" {}
send_connector "out" {
  address_spaces = ["routed.example", "*.wild.example"]
  drop_directory = "drop"
}
