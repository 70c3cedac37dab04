"""Commands other than `lookback run`: recommend, compare, tune, prune, data."""
