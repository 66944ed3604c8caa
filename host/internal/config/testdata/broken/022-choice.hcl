log {
  level = "wran"
}
host {
  name              = "edge.example.org"
  on_partial_reject = "bounce"
}
