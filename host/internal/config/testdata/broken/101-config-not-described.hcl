agent "silent" {
  priority = 10
}
agent "muddled" {
  priority = 11
}
