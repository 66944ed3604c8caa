log {
  level = "in	f[31mö"
  json	= "日本語", 
}
