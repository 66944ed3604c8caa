send_connector "a" {
  address_spaces  = ["x.example"]
  dns             = true
  require_tls     = true
  ignore_starttls = true
  force_helo      = true
  tls_auth        = "certificate"
  tls_domain      = "mx.example.org"
  tls_ca_file     = "prefixes.txt"
}
