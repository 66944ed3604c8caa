host {
  name = env("POSTERN_NAME")
}
log {
  level = env("POSTERN_LEVEL", "loud")
}
