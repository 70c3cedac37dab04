"""Profile of a log and its drift."""
