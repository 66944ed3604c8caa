users {
  file = "passwords"
}
