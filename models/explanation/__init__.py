"""Contributions of past interactions to a score, and their faithfulness."""
