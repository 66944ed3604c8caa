agent "fake" {
  priority = 10
  config {
    threshold = 7
    names     = ["a.example", "fail.example"]
    dnsbl "zen.example" {
      codes = ["127.0.0.2"]
    }
    dnsbl "fail.example" {
      codes = ["127.0.0.2", "10.0.0.1"]
    }
    scores = {
      good = 1
      fail = 2
    }
    token = "fail"
  }
}
