host {
  name     = "edge.example.org"
  data_dir = "prefixes.txt"
}
