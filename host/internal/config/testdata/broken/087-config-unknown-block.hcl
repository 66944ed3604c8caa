agent "fake" {
  priority = 10
  config {
    dnsbls "zen.example" {
    }
  }
}
