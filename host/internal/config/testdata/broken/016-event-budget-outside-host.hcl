event_budget {
  connect = "10s"
}
