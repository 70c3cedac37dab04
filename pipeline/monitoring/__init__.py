"""After delivery: ledger of deliveries, realised outcomes, experiments, alerts."""
