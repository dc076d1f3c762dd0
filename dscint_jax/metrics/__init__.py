"""Confusion matrices, the five metrics, and their intervals."""
