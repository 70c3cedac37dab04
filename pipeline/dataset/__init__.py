"""A features folder as arrays: histories, split, targets, item features."""
