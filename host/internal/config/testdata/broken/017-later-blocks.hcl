directory "corp" {
  file = "recipients.csv"
  ldap {
    url = "ldaps://dc.example.org"
  }
}
agent "fake" {
  priority = 10
  version  = "~> 1.2"
}
canary {
}
