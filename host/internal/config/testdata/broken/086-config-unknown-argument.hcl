agent "fake" {
  priority = 10
  config {
    treshold = 5
  }
}
