queue {
  expire_after   = "2"
  delay_notice   = 4
  retry_interval = "30 minutes"
}
