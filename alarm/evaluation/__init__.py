"""Comparison, selection, judging and inspection of runs."""
