agent "fake" {
  priority = 10
  when {
    connectors = ["base", "bass"]
    traffic    = ["extern"]
    max_size   = "big"
  }
}
