"""Vocabularies, per-user histories, splits, leak checks."""
