agent "strict" {
  priority = 10
}
agent "strict2" {
  priority = 11
  plugin   = "strict"
  config {
  }
}
