agent "fake" {
  priority = 10
  config {
    limits = {
      soft = 1
      hart = 2
    }
  }
}
