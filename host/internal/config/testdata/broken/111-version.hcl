agent "fake" {
  priority = 10
  version  = "~> 1.2"
}
agent "missing" {
  plugin   = "fake"
  priority = 11
  version  = "~> 7.0"
}
agent "off" {
  plugin   = "fake"
  priority = 12
  enabled  = false
  version  = "~> 7.0"
}
agent "two" {
  plugin   = "fake"
  priority = 13
  command  = ["/bin/true"]
  version  = "1.2.3"
}
agent "attached" {
  plugin   = "fake"
  priority = 14
  attach   = "unix:/run/fake.sock"
  version  = "1.2.3"
}
