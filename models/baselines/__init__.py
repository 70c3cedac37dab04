"""Reference recommenders: popularity, own favourites, neighbours, EASE, ALS."""
