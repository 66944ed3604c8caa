agent "fake" {
  priority = 10
  config {
    threshold = "five"
    names     = "a"
    scores    = ["a"]
    mode      = 5
    enabled   = 1
  }
}
