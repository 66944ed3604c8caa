ledger = "full"
