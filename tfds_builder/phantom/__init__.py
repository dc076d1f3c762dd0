"""Synthetic patients for whole-body bone scintigraphy: anatomy, disease, camera, DICOM files.

`simulate(seed, patient, study)` makes one scan; `python -m tfds_builder.phantom` a whole cohort.
"""

from tfds_builder.phantom.camera.scan import Case, Scan, sample_case, simulate
from tfds_builder.phantom.disease.disease import LABELS, PROPORTIONS
