"""Reference recommenders: popularity, neighbours, EASE, ALS."""
