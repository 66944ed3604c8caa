agent "fake" {
  priority = 10
  config {
    dnsbl "zen.example" {
      code = ["127.0.0.2"]
    }
  }
}
