log {
  level "debug"
}
queue {
  expire_after = "9x"
}
