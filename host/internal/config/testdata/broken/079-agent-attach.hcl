agent "a" {
  priority  = 10
  attach    = "/run/agent.sock"
}
agent "b" {
  priority  = 11
  attach    = "unix:run/agent.sock"
  command   = ["./x"]
  instances = 2
}
