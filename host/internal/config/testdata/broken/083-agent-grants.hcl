agent "fake" {
  priority = 10
  grants   = ["reject", "quarantene", "everything"]
}
