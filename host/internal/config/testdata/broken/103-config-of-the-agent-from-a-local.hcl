locals {
  names = ["a.example", "fail.example"]
}
agent "fake" {
  priority = 10
  config {
    names = local.names
  }
}
