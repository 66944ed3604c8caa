directory "a" {
  file = "recipients.csv"
}
directory "b" {
  file = "prefixes.txt"
}
directory "c" {
}
