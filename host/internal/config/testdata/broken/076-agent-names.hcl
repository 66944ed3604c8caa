agent "Bad Name" {
  priority = 10
  plugin   = "fake"
}
agent "fake2" {
  priority = 11
  plugin   = "../fake"
}
