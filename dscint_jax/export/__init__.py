"""A trained checkpoint as one file for other programs."""
