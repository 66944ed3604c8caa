# Read with every case that does not begin with "# alone", so that a case shows its own mistakes only.
receive_connector "base" {
  listen = ["127.0.0.1:2525"]
}
accepted_domain "example.org" {}
send_connector "base" {
  address_spaces = ["*"]
  drop_directory = "drop"
}
