# A multi-role server inside, the counterpart of Exchange's Install-AntispamAgents: it takes mail from the edge servers and from
# its own users, filters what comes from outside and has passed no edge, journals, and hands mail to the mailbox server over
# LMTP. Put in your names and networks, then: postern check --config config/hub.hcl

locals {
  edges = ["10.20.0.11/32", "10.20.0.12/32"]
}

host {
  name                  = env("POSTERN_NAME", "hub.example.org")
  data_dir              = "../var/hub"
  internal_smtp_servers = local.edges   # the source of a message is found in their Received fields
}

# From the edge servers, and from anybody where there are none.
receive_connector "mail" {
  listen      = [env("POSTERN_LISTEN", "127.0.0.1:2526")]
  permissions = ["anonymous", "own_servers"]
  tls         = "self-signed"
}

# From users, who log in. `postern user hash` makes the lines of the file.
# receive_connector "submission" {
#   listen      = ["10.30.0.1:587"]
#   permissions = ["users"]
#   tls         = "self-signed"
#   require_tls = true
# }
# users {
#   file = "users.txt"
# }

tls "self-signed" {}

accepted_domain "example.org" {
  type = "authoritative"
}

# Who exists, which groups there are, and whom recipients hold for safe or have blocked.
# directory "people" {
#   file = "recipients.csv"
# }

send_connector "mailboxes" {
  address_spaces = ["example.org"]
  drop_directory = "../var/hub-drop"    # a mailbox server: lmtp = "10.30.0.21:24"
}
# send_connector "out" {
#   address_spaces = ["*"]
#   smart_hosts    = ["10.20.0.11", "10.20.0.12"]
#   require_tls    = true
# }

agent_defaults {
  timeout    = "5s"
  on_failure = "defer"
  when {
    traffic = ["external"]
  }
}

# The five of Install-AntispamAgents.
agent "contentfilter" {
  priority = 10
}
agent "senderauth" {
  priority = 20
}
agent "senderfilter" {
  priority = 30
}
agent "recipientfilter" {
  priority = 40
}
agent "protocolanalysis" {
  priority = 50
}

# Mail inside and mail that leaves is scanned here, mail from outside at the edge: its signed stamp tells that
# (stamp_key in the config of both), and without one it is scanned again.
agent "antivirus" {
  priority = 60
  when { traffic = ["external", "outbound", "internal"] }
  timeout {
    message   = "30s"
    submitted = "10m"
  }
  on_failure {
    message = "hold"
  }
  sandbox {
    connect = ["unix:/run/clamav/clamd.ctl"]
  }
}

agent "journaling" {
  priority = 70
  when { traffic = ["external", "outbound", "internal"] }
  config {
    # mailbox = "journal@archive.example"
    # rule "everything" {}
  }
}
