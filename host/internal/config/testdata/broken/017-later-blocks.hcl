directory "corp" {
  file = "recipients.csv"
  ldap {
    url = "ldaps://dc.example.org"
  }
}
canary {
}
