agent "fake" {
  priority = 10
  timeout {
    connect   = "11s"
    command   = "20s"
    message   = "2m"
    submitted = "10h"
    data      = "5s"
  }
}
agent "twice" {
  plugin   = "fake"
  priority = 11
  timeout  = "5"
  timeout {
    connect = "1s"
  }
}
