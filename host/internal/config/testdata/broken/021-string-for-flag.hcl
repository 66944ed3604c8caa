log {
  json = "yes"
}
