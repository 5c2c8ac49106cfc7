"""Figures of the paper: one file a figure. Each takes saved tables and returns a matplotlib Figure."""
