# The sample of the design, without what comes in later versions: what all nodes share.
locals {
  hubs = ["10.30.0.11", "10.30.0.12"]
}

log        { level = "info" }
metrics    { listen = "127.0.0.1:9090" }
quarantine { expire_after = "30d" }
queue      { expire_after = "2d" }

accepted_domain "adventureworks.example"        { type = "authoritative" }
accepted_domain "shared.adventureworks.example" { type = "internal_relay" }
remote_domain   "*"                             { nondelivery_reports = true }

directory "corp" {
  file   = "recipients.csv"
  hashed = true
}

send_connector "internet" {
  address_spaces = ["*"]
  dns            = true
}
send_connector "helo-only" {
  address_spaces = lines(file("helo-domains.txt"))
  dns            = true
  force_helo     = true
}
send_connector "tls-partners" {
  address_spaces = ["contoso.example;5", "fabrikam.example"]
  dns            = true
  require_tls    = true
  tls_auth       = "domain"
}
send_connector "to-hub" {
  address_spaces = ["adventureworks.example", "shared.adventureworks.example"]
  smart_hosts    = local.hubs
  require_tls    = true
  username       = "edge"
  password       = sensitive(file("hub.secret"))
}

agent_defaults {
  timeout    = "5s"
  on_failure = "defer"
  when { traffic = ["external"] }
}

agent "connfilter" {
  priority = 10
  config {
    dnsbl "zen.example" { codes = ["127.0.0.2"] }
    list_file = "helo-domains.txt"
    keep      = "1w12h"
    max_size  = "25 MB"
  }
}
agent "rewrite-in" {
  plugin   = "addressrewrite"
  priority = 20
  config { direction = "inbound" }
}
agent "contentfilter" {
  priority = 40
  timeout { message = "20s" }
}
agent "antivirus" {
  priority   = 110
  when { traffic = ["external", "outbound", "internal"] }
  timeout {
    message   = "45s"
    submitted = "10m"
  }
  on_failure {
    default = "defer"
    message = "hold"
  }
  instances   = env("PARALLEL", "2")
  grants      = ["reject", "defer", "quarantine", "headers", "body"]
  environment = { CLAMD_TOKEN = sensitive(file("hub.secret")), CLAMD = "unix:/run/clamav/clamd.ctl" }
}
