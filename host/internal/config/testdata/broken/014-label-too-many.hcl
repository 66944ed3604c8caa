accepted_domain "a.example" "b.example" {}
host "edge" {}
