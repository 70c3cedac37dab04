"""Training and indexing steps that several stages share."""
