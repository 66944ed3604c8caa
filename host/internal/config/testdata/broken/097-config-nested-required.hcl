agent "fake" {
  priority = 10
  config {
    dnsbl "zen.example" {
      retry {
      }
    }
    report {
    }
  }
}
