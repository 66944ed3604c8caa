agent_defaults {
  timeout  = "5s"
  priority = 10
  timeout {
    message = "1s"
  }
}
