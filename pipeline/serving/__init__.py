"""The bundle and everything that scores users with it."""
