"""What a log looks like: the form of its files, the meaning of their columns."""
