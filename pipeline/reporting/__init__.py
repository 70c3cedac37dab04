"""Figures, tables, the HTML report, run descriptions."""
