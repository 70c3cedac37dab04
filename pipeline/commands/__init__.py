"""Commands other than `lookback run`: recommend, compare, power, tune, prune, data."""
