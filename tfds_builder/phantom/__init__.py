"""Synthetic patients for whole-body bone scintigraphy: anatomy, disease, camera, DICOM files.

`simulate(seed, patient, study)` makes one scan; `python -m tfds_builder.phantom` a whole cohort.
"""

from tfds_builder.phantom.disease import LABELS, PROPORTIONS
from tfds_builder.phantom.scan import Case, Scan, sample_case, simulate

__all__ = ["LABELS", "PROPORTIONS", "Case", "Scan", "sample_case", "simulate"]
