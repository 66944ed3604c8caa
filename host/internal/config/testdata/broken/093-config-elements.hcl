agent "fake" {
  priority = 10
  config {
    names    = ["a.example", "b example", 5]
    networks = ["192.0.2.0/24", "192.0.2.0/240"]
    patterns = ["^ok$", "(", "[a-z"]
    scores = {
      good = 1
      bad  = "high"
    }
  }
}
