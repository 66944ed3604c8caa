locals {
  a = local.b
  b = "${local.a}x"
}
log {
  level = local.a
}
