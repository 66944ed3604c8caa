receive_connector "a" {
  listen         = ["127.0.0.1:26"]
  max_recipients = 5
}
local {
  a = 1
}
