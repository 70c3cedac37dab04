"""After delivery: ledger of delivered lists, their realised outcomes, alerts."""
