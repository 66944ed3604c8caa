# This node's own file.
host {
  name                  = env("EDGE", "edge01.adventureworks.example")
  data_dir              = "data"
  internal_smtp_servers = []
  event_budget {
    connect = "10s"
    command = "20s"
    message = "60s"
  }
}

tls "public" {
  certificate = "tls/good.crt"
  key         = "tls/good.key"
}

receive_connector "internet" {
  listen      = ["203.0.113.25:25", "[2001:db8::25]:25"]
  permissions = ["anonymous"]
  tls         = "public"
}
receive_connector "from-hub" {
  listen      = ["10.20.0.1:25"]
  remote      = local.hubs
  permissions = ["own_servers"]
  tls         = "public"
  require_tls = true
  limits {
    max_message_size = "50 MB"
    tarpit           = "0s"
  }
}
