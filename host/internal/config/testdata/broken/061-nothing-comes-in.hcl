# alone
host {
  name = "edge"
}
