"""Validation, quarantine and storage of events, items and users."""
