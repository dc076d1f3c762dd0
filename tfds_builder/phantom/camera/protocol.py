"""How a cohort is acquired: difficulty, camera, collimator, matrix, dose and timing.

In: the choices of whoever makes the cohort. Out: `Protocol`, part of what a scan is a function of.
"""

import dataclasses

import numpy as np

from tfds_builder.commandline.errors import UserError
from tfds_builder.phantom.camera.grid import Grid

INTRINSIC_FWHM_MM = 3.8
"""Resolution of the crystal and its electronics."""
FWHM_PER_SIGMA = 2.354820045


@dataclasses.dataclass(frozen=True)
class Difficulty:
    """Factors on the contrast of every lesion (its ratio less one) and on the counts of a view."""

    contrast: float
    counts: float


DIFFICULTIES = {
    "easy": Difficulty(contrast=1.6, counts=1.5),
    "standard": Difficulty(contrast=1.0, counts=1.0),
    "hard": Difficulty(contrast=0.6, counts=0.5),
}
"""`standard` has the contrast and the counts of clinical scans."""


@dataclasses.dataclass(frozen=True)
class Collimator:
    """Parallel holes: geometric FWHM at the face (mm), its growth per mm, relative sensitivity."""

    face_mm: float
    growth: float
    sensitivity: float

    def sigma_mm(self, distance_mm: np.ndarray | np.floating | float) -> np.ndarray:
        """Standard deviation of the system's point spread at a distance from the face, mm."""
        geometric = self.face_mm + self.growth * np.asarray(distance_mm)
        return np.asarray(np.hypot(INTRINSIC_FWHM_MM, geometric) / FWHM_PER_SIGMA)


COLLIMATORS = {
    "LEHR": Collimator(1.54, 0.0433, 1.0),
    "LEAP": Collimator(2.01, 0.0566, 1.63),
    "LEUHR": Collimator(1.61, 0.0304, 0.50),
}
"""Low-energy high-resolution, all-purpose and ultra-high-resolution.

LEHR is fitted to 4.1, 5.3, 7.0, 8.9 and 10.9 mm at 0, 50, 100, 150 and 200 mm. The others scale its
holes by diameter over length as in a camera maker's data sheets, which also give the sensitivity.
"""

CAMERAS = ("ge", "siemens")
"""Whose headers the files resemble."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The acquisition of a cohort. What is None is drawn for each patient or study.

    Units: mm, mm/s, MBq, hours. The defaults are those of clinical whole-body bone scans.
    """

    difficulty: str = "standard"
    camera: str | None = None
    collimator: str = "LEHR"
    rows: int = 1024
    columns: int = 256
    pixel_mm: float = 2.40
    speed_mm_s: float | None = None
    activity_mbq: float | None = None
    uptake_hours: float | None = None

    def __post_init__(self) -> None:
        """Raises UserError on a value that no acquisition has."""
        for name, value, known in (
            ("difficulty", self.difficulty, DIFFICULTIES),
            ("collimator", self.collimator, COLLIMATORS),
            ("camera", self.camera, (None, *CAMERAS)),
        ):
            if value not in known:
                names = ", ".join(str(k) for k in known if k is not None)
                raise UserError(f"--{name} must be one of {names}, not {value}")
        for name, value, low, high in (
            ("matrix rows", self.rows, 256, 4096),
            ("matrix columns", self.columns, 64, 2048),
            ("pixel_mm", self.pixel_mm, 0.5, 10.0),
            ("speed_mm_s", self.speed_mm_s, 0.5, 20.0),
            ("activity_mbq", self.activity_mbq, 50.0, 2000.0),
            ("uptake_hours", self.uptake_hours, 0.5, 24.0),
        ):
            if value is not None and not low <= value <= high:
                raise UserError(f"--{name} must be between {low} and {high}, not {value}")
        if self.rows * self.pixel_mm < 1950 or self.columns * self.pixel_mm < 500:
            raise UserError(
                f"a matrix of {self.rows}x{self.columns} pixels of {self.pixel_mm} mm is smaller "
                "than a patient: at least 1950 mm long and 500 mm wide"
            )

    @property
    def grid(self) -> Grid:
        """The matrix."""
        return Grid(self.rows, self.columns, self.pixel_mm)
