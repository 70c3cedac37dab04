"""The commands beside `lookback run`."""
