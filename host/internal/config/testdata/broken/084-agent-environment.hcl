agent "fake" {
  priority    = 10
  environment = {
    "A B"         = "x"
    POSTERN_TOKEN = "x"
    PORT          = 25
  }
}
agent "list" {
  priority    = 11
  plugin      = "fake"
  environment = ["A=b"]
}
