"""Vocabularies, per-user histories, splits."""
