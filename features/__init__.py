"""Frames in, frames or arrays out: reading, validating and shaping behaviour logs (polars, pyarrow, numpy)."""
