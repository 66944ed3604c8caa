agent "fake" {
  priority = 10
  config {
    token = 5
  }
}
