log {
  level = "debug"
  level = "info"
}
