log { level = "info", json = true }
