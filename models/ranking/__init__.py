"""The second-stage ranker."""
