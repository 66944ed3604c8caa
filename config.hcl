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
  when {
    traffic = ["external"]         # external, outbound, internal: what an agent judges unless its own block says otherwise
  }
}

# The agents, in the order of Exchange's Edge Transport. Each protects with an empty config block; what follows are its
# defaults in comments, and README.md in plugins/NAME tells the rest.

# Refuses clients by their address: lists, DNS lists, and those that talk before they are greeted.
agent "connfilter" {
  priority = 10
  config {
    block_list {
      entry "192.0.2.0/24" {
        comment = "documentation network, so the sample can show a refusal"
      }
    }
    # dnsbl "zen.example" {
    #   codes = ["127.0.0.2"]
    # }
    # early_talkers = "reject"     # reject, note, ignore
  }
}

# Turns external addresses into internal ones on the way in; rewrite-out does the reverse.
agent "rewrite-in" {
  plugin   = "addressrewrite"
  priority = 20
  config {
    direction = "inbound"
    # entry "branches" {
    #   internal = "corp.example.org"
    #   external = "example.org"
    # }
  }
}

# Rules of your own. It runs before the content filter, as in Exchange: a rule that reads the SCL needs a higher priority,
# and `postern check` says so.
agent "edgerules" {
  priority = 30
  config {
    # rule "no-programs" {
    #   priority = 10
    #   when   { attachment_names = ["*.exe", "*.scr"] }
    #   reject { text = "Programs are not taken here" }
    # }
  }
}

# Gives every message a spam confidence level (SCL) and refuses the worst.
agent "contentfilter" {
  priority = 40
  config {
    bad_phrases = ["no risk investment opportunity"]
    # model         = "spam.model" # of `postern agent run contentfilter -- train`; without one it works by its rules
    # reject_at     = 7
    # delete_at     = 0            # 0: off
    # quarantine_at = 0
  }
}

# SPF, DKIM, DMARC, ARC and Sender ID: leaves the results in the message and for other agents.
agent "senderauth" {
  priority = 50
  config {
    # dmarc_reject = "stamp"       # stamp, quarantine, reject, delete
    # report_from  = "dmarc-reports@example.org" # of the DMARC aggregate reports; without it none are sent
  }
}

# Refuses senders by address and domain, and those that recipients have blocked themselves.
agent "senderfilter" {
  priority = 60
  config {
    # blocked_senders = ["spam@example.net", "*.spam.example"]
  }
}

# Refuses recipients that a directory does not know, and ends sessions that guess addresses.
agent "recipientfilter" {
  priority = 70
  config {}
}

# Rates sources of mail by how they behave, and blocks the worst for a day.
agent "protocolanalysis" {
  priority = 80
  config {
    # block_threshold = 7
    # block_period    = "24h"
  }
}

# Keeps unwanted files out of mail, inside archives too.
agent "attachmentfilter" {
  priority = 90
  config {
    # action = "reject"            # reject, strip, silent_delete, quarantine
  }
}

agent "rewrite-out" {
  plugin   = "addressrewrite"
  priority = 100
  when { traffic = ["external", "outbound", "internal"] }
  config {
    direction = "outbound"
  }
}

# Shows mail to virus scanners: the clamd of this machine, if there is one. Without one mail flows, and `postern status`
# says so.
agent "antivirus" {
  priority = 110
  when { traffic = ["external", "outbound", "internal"] }
  timeout {
    message   = "30s"
    submitted = "10m"
  }
  on_failure {
    message = "hold"               # accept while no engine answers, scan later
  }
  sandbox {
    connect = ["unix:/run/clamav/clamd.ctl"]
  }
  # canary {                       # try a new version or config block on a share of the sessions first; or shadow { }
  #   share    = "10%"
  #   duration = "1h"
  # }
  config {}
}

# Sends a copy of the mail that a rule names to a journal mailbox.
agent "journaling" {
  priority = 120
  when { traffic = ["external", "outbound", "internal"] }
  config {
    # mailbox = "journal@archive.example"
    # rule "everything" {}
  }
}

# Signs what leaves.
agent "dkimsign" {
  priority = 130
  when { traffic = ["outbound"] }
  config {
    # key "example.org" "2026a" { file = "keys/2026a.pem" }
    # seal "example.org" "2026a" { file = "keys/2026a.pem" } # ARC: needs "external" among the traffic
  }
}
