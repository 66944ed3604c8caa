agent "fake" {
  priority = 10
  config {
    report {
      to = "a@example.org"
    }
    report {
      to = "b@example.org"
    }
  }
}
