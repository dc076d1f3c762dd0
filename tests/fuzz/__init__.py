"""Fuzzing: files damaged in every way that is known, each of which must be read or refused.

`python -m tests.fuzz` makes them from synthetic scans and feeds them to what a build does
with a file.
"""
