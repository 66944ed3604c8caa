queue {
  expire_after = "3y"
}
quarantine {
  expire_after = "99999999999w"
}
dns {
  timeout = "2h"
}
