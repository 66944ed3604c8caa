accepted_domain "a.example" {
  type = "autoritative"
}
