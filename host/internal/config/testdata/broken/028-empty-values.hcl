host {
  name     = ""
  data_dir = ""
}
receive_connector "a" {
  listen      = []
  permissions = []
}
