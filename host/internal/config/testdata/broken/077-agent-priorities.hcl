agent "fake" {
  priority = 10
}
agent "second" {
  priority = 10
  plugin   = "fake"
}
agent "third" {
  plugin = "fake"
}
agent "fourth" {
  priority = -1
  plugin   = "fake"
}
