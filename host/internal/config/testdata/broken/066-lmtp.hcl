send_connector "out" {
  address_spaces = ["x.example"]
  lmtp           = "/run/lmtp.sock"
}
