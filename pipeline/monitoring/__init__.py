"""After delivery: ledger of deliveries, realised outcomes, alerts."""
