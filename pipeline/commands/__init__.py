"""Commands other than `lookback run`: init, update, recommend, compare, power, tune, prune, data."""
