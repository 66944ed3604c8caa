# The sample configuration of Postern: `make run` starts it. It listens on loopback only, accepts mail for
# example.org and puts what it delivers into var/drop. docs/configuration.md lists every option; the ones not
# set here are shown with their defaults in comments.

host {
  name     = "edge.example.org"    # how it greets; an FQDN
  data_dir = "var/postern"         # store, tables, ledger, control socket, state of agents
  # internal_smtp_servers = []     # whose Received fields are believed
  # max_hops              = 30     # Received fields before a message is a loop
  # event_budget {                 # bounds the whole chain of agents at an event
  #   connect = "10s"
  #   command = "20s"
  #   message = "60s"
  # }
}

log {
  level = "info"
}

# Every verdict is in the ledger; "full" has the plain "continue" ones too, so that `postern why` can tell all.
ledger {
  full = true
}

# queue {
#   expire_after = "2d"
# }

receive_connector "local" {
  listen      = ["127.0.0.1:2525"]
  permissions = ["anonymous"]      # anonymous, users, own_servers
  tls         = "self-signed"      # STARTTLS; implicit_tls = true for port 465
}

tls "self-signed" {}               # no certificate given: one is made at first start

accepted_domain "example.org" {
  type = "authoritative"           # authoritative, internal_relay or external_relay
}

send_connector "drop" {
  address_spaces = ["example.org"]
  drop_directory = "var/drop"      # or smart_hosts, dns = true, lmtp
}

agent_defaults {
  timeout    = "5s"
  on_failure = "defer"             # defer, skip, reject; hold at the end of data
}

# Refuses clients by their address: lists and DNS lists.
agent "connfilter" {
  priority = 10
  config {
    block_list {
      entry "192.0.2.0/24" {
        comment = "documentation network, so the sample can show a refusal"
      }
    }
  }
}

# Gives every message a spam confidence level (SCL) and refuses the worst.
agent "contentfilter" {
  priority = 40
  config {
    bad_phrases = ["no risk investment opportunity"]
  }
}
