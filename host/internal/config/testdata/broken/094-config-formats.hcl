agent "fake" {
  priority = 10
  config {
    timeout  = "5 parsecs"
    max_size = "lots"
    sender   = "nobody"
  }
}
