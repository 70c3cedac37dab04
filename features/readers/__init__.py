"""Readers of delimited text, JSON lines and Parquet."""
