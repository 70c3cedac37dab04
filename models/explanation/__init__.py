"""Contributions of past interactions to a score."""
