agent "fake" {
  priority = 10
  config {
    mode = "rejct"
  }
}
