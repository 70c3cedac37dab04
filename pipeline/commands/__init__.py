"""Commands other than `lookback run`: init, recommend, compare, power, tune, prune, data."""
