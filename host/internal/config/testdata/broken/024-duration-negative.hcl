queue {
  retry_interval  = "-5m"
  glitch_interval = "0s"
}
