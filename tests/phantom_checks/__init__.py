"""Whether phantoms are like clinical scans, and how well one could tell their classes.

`python -m tests.phantom_checks` compares them with clinical scans, `python -m
tests.phantom_checks.oracle` reads a cohort by rule.
"""
