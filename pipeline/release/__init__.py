"""Promotion of model versions: the champion gate and the model card."""
