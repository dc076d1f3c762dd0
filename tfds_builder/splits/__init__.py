"""Which patient is in which split, and how that is kept."""

from tfds_builder.splits.assign import FRACTIONS, TornGroup, assign_splits, shares_of
from tfds_builder.splits.file import FILE_NAME, check_division, read_splits, splits_text
