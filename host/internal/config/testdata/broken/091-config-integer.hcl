agent "fake" {
  priority = 10
  config {
    threshold = 1.5
  }
}
