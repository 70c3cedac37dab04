"""Arrays in, arrays out: attention over a user's history and everything measured on it (torch, numpy)."""
