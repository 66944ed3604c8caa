queue {
  max_per_hop     = "20"
  max_connections = "many"
}
