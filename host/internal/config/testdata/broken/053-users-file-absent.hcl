users {
}
