"""Which patient is in which split, how that is kept, and the proof that none is in two."""

from tfds_builder.splits.assign import TornGroup, assign_splits
from tfds_builder.splits.file import FILE_NAME, read_splits, splits_text
from tfds_builder.splits.names import (
    FRACTIONS,
    check_division,
    shares_of,
    split_names,
)
from tfds_builder.splits.proof import Membership, Proof, prove_disjoint
