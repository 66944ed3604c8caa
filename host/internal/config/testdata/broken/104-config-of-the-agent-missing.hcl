agent "fake" {
  priority = 10
  config {
    mode = "fail"
  }
}
agent "again" {
  plugin   = "fake"
  priority = 11
  config {
    names = [for n in ["x.example", "fail.example"] : n]
  }
}
