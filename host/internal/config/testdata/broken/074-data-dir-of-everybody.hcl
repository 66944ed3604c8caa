host {
  name     = "edge.example.org"
  data_dir = "shared"
}
