queue {
  colour = "blue"
}
