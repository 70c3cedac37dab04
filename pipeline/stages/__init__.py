"""The stages: one module per `lookback run STAGE`."""
