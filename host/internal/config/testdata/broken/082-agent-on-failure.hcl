agent_defaults {
  on_failure {
    command = "hold"
  }
}
agent "fake" {
  priority   = 10
  on_failure = "hold"
}
agent "block" {
  priority = 11
  plugin   = "fake"
  on_failure {
    default   = "hold"
    connect   = "hold"
    message   = "hold"
    submitted = "reject"
  }
}
agent "word" {
  priority   = 12
  plugin     = "fake"
  on_failure = "defr"
}
