locals {
  secret = sensitive("hunter2")
}
send_connector "a" {
  address_spaces = ["x.example"]
  smart_hosts    = ["hub.example.org"]
  username       = "edge"
  password       = ["hunter2"]
  fqdn           = local.secret
  port           = local.secret
  tls_auth       = local.secret
}
