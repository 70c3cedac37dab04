"""Commands besides `lookback run`: recommend, compare, tune, prune, data."""
