"""Data frames in, frames or arrays out: reading, validating and shaping logs (polars, pyarrow, numpy)."""
