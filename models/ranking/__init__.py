"""The second-stage ranker: features, training, calibration."""
