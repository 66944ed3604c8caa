receive_connector "a" {
  listen       = ["127.0.0.1:465"]
  implicit_tls = true
  require_tls  = true
}
receive_connector "b" {
  listen = ["127.0.0.1:26"]
  tls    = "public"
}
