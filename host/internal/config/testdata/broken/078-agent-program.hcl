agent "faek" {
  priority = 10
}
agent "a" {
  priority = 11
  command  = ["./missing"]
}
agent "b" {
  priority = 12
  command  = ["./prefixes.txt", "--verbose"]
}
agent "c" {
  priority = 13
  command  = ["no-such-program-anywhere"]
}
agent "d" {
  priority = 14
  command  = []
}
agent "off" {
  priority = 15
  enabled  = false
}
agent "unlike-any" {
  priority = 16
}
