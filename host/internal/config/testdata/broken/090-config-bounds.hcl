agent "fake" {
  priority = 10
  config {
    threshold = 10
    timeout   = "1h"
    max_size  = "2 GB"
  }
}
