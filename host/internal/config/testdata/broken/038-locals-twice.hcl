locals {
  a = "info"
}
locals "x" {
  a = "debug"
  b {
  }
}
