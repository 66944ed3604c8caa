host {
  name                  = "*.example.org"
  postmaster            = "postmaster"
  internal_smtp_servers = ["hub.example.org"]
}
