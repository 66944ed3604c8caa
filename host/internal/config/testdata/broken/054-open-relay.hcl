host {
  name                  = "edge.example.org"
  internal_smtp_servers = ["::/0"]
}
receive_connector "a" {
  listen      = ["203.0.113.25:25"]
  permissions = ["anonymous", "own_servers"]
}
receive_connector "b" {
  listen      = ["203.0.113.26:25"]
  remote      = ["0.0.0.0/0"]
  permissions = ["own_servers"]
}
receive_connector "c" {
  listen      = ["203.0.113.27:25"]
  remote      = ["10.0.0.0/8"]
  permissions = ["anonymous", "own_servers"]
}
