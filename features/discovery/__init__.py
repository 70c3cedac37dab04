"""What a log that nobody has described looks like: the form of its files and the meaning of their columns."""
