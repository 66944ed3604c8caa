agent "fake" {
  priority = 10
  config {
    dnsbl {
    }
    dnsbl "a" "b" {
    }
  }
}
