"""Fuzzing: files damaged in every way that is known, each of which must be read or refused.

`python -m tfds_builder.fuzz` makes them from synthetic scans and feeds them to what a build does
with a file.
"""
