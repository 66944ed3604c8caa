log {
  level = "debug"
