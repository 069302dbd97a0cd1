"""Intervals of metrics, and comparisons of evaluations."""
