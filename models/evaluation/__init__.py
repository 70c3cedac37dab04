"""Ranks, metrics, confidence intervals, paired comparisons."""
