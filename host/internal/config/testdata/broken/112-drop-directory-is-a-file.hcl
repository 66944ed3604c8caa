send_connector "archive" {
  address_spaces = ["archive.example.org"]
  drop_directory = "occupied.txt"
}
