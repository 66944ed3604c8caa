# alone
receive_connector "internet" {
  listen = ["127.0.0.1:2525"]
}
receive_connector "both" {
  listen      = ["127.0.0.1:2526"]
  remote      = ["10.0.0.0/8"]
  permissions = ["own_servers", "anonymous"]
}
receive_connector "inside" {
  listen      = ["127.0.0.1:2527"]
  remote      = ["10.0.0.0/8"]
  permissions = ["own_servers"]
}
send_connector "out" {
  address_spaces = ["*"]
  drop_directory = "drop"
}
