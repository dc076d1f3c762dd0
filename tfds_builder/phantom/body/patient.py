"""The sampled facts of a synthetic patient, of how he lies on the table, and of the acquisition.

Everything here is drawn from a generator that the caller derives from (seed, patient, study).
"""

import dataclasses
import datetime

import numpy as np

from tfds_builder.phantom.camera.protocol import COLLIMATORS, DIFFICULTIES, Protocol

TC99M_HALF_LIFE_HOURS = 6.02
REFERENCE_SPEED_MM_S = 4.43
REFERENCE_PIXEL_MM = 2.40
"""Pixel that the background of clinical scans was counted in."""
REFERENCE_COUNTS = 0.56e6
"""Counts of a view at the reference speed, 700 MBq and 3 h: clinical scans range 0.36 to 0.68e6."""
MOST_BACKGROUND = 0.2
"""Share of the counts of a view that may be background."""
STUDY_SHARES = (0.85, 0.13, 0.02)
"""Share of the patients with one, two and three studies."""


@dataclasses.dataclass(frozen=True)
class Patient:
    """Who the patient is. Lengths in mm, weight in kg; `breadth` scales bone widths."""

    sex: str
    age: int
    height_mm: float
    weight_kg: float
    breadth: float
    segments: tuple[float, ...]
    shoulders: float
    pelvis: float
    scoliosis_mm: tuple[float, float]
    kyphosis_mm: float

    @property
    def body_mass_index(self) -> float:
        """Weight over squared height, kg/m2."""
        return self.weight_kg / (self.height_mm / 1000) ** 2


@dataclasses.dataclass(frozen=True)
class Pose:
    """How the patient lies: angles in radians, shifts in mm; pairs are (left, right)."""

    shift_x: float
    shift_z: float
    tilt: float
    roll: float
    head_turn: float
    head_tilt: float
    head_nod: float
    arm: tuple[float, float]
    elbow: tuple[float, float]
    forearm_lift: tuple[float, float]
    hand_turn: tuple[float, float]
    leg: tuple[float, float]
    leg_turn: tuple[float, float]
    foot_turn: tuple[float, float]
    foot_point: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Acquisition:
    """Camera, dose and timing: mm, MBq, hours, mm/s, expected counts a view, ratios.

    `background` is counts per pixel; the gaps are from skin to collimator.
    """

    camera: str
    activity_mbq: float
    uptake_hours: float
    speed_mm_s: float
    counts_per_view: float
    scatter_ratio: float
    background: float
    gap_front_mm: float
    gap_back_mm: float


_SEGMENT_SPREAD = (0.03, 0.13, 0.03, 0.03, 0.03, 0.03, 0.03)
"""Of head, neck, chest, loin, pelvis, thigh and shin: the chin is held up or down."""
_AGES = {"normal": (54, 16), "metastasis": (62, 12), "arthritis": (64, 10)}


def sample_patient(rng: np.random.Generator, label: str) -> Patient:
    """Draws a patient of a nuclear-medicine clinic; arthritis starts at 40 years."""
    sex = "F" if rng.random() < 0.5 else "M"
    youngest = 40 if label == "arthritis" else 16
    age = int(np.clip(rng.normal(*_AGES.get(label, (50, 15))), youngest, 90))
    mean, spread = (1610, 58) if sex == "F" else (1720, 62)
    height = float(np.clip(rng.normal(mean, spread), 1500, 1880))
    index = float(np.clip(rng.normal(24.5, 2.8), 17.5, 36))
    return Patient(
        sex=sex,
        age=age,
        height_mm=height,
        weight_kg=round(index * (height / 1000) ** 2, 1),
        breadth=float(rng.normal(1.0, 0.025) * (0.98 if sex == "F" else 1.02)),
        segments=tuple(float(f) for f in rng.normal(1, _SEGMENT_SPREAD)),
        shoulders=float(rng.normal(0.965 if sex == "F" else 1.02, 0.025)),
        pelvis=float(rng.normal(1.03 if sex == "F" else 0.985, 0.025)),
        scoliosis_mm=(float(rng.normal(0, 5)), float(rng.normal(0, 3.5))),
        kyphosis_mm=float(rng.normal(0, 5) - max(0, age - 60) * 0.25),
    )


def sample_pose(rng: np.random.Generator) -> Pose:
    """Draws a supine posture with the arms beside the body."""

    def pair(mean: float, shared: float, own: float) -> tuple[float, float]:
        center = rng.normal(mean, shared)
        left, right = rng.normal(center, own, 2)
        return float(left), float(right)

    return Pose(
        shift_x=float(rng.normal(0, 9)),
        shift_z=float(np.clip(rng.normal(0, 60), -150, 150)),
        tilt=float(np.radians(rng.normal(0, 0.9))),
        roll=float(np.radians(rng.normal(0, 3.0))),
        head_turn=float(np.radians(rng.normal(0, 12))),
        head_tilt=float(np.radians(rng.normal(0, 3.5))),
        head_nod=float(np.radians(rng.normal(0, 5))),
        arm=pair(0.0, 0.03, 0.03),
        elbow=pair(-0.03, 0.04, 0.04),
        forearm_lift=pair(0.05, 0.06, 0.05),
        hand_turn=pair(0.7, 0.4, 0.3),
        leg=pair(-0.040, 0.018, 0.008),
        leg_turn=pair(0.15, 0.12, 0.10),
        foot_turn=pair(-0.05, 0.22, 0.12),
        foot_point=pair(0.0, 0.16, 0.07),
    )


def sample_dates(rng: np.random.Generator) -> tuple[datetime.date, ...]:
    """Draws the dates of a patient's studies: 13 % have two, 2 % three."""
    date = datetime.date(2015, 1, 1) + datetime.timedelta(days=int(rng.integers(0, 2900)))
    dates = [date]
    for _ in range(int(rng.choice(3, p=STUDY_SHARES))):
        dates.append(dates[-1] + datetime.timedelta(days=int(rng.integers(120, 430))))
    return tuple(dates)


def sample_acquisition(rng: np.random.Generator, protocol: Protocol, camera: str) -> Acquisition:
    """Draws dose, timing and camera; what the protocol fixes takes the place of its draw.

    Every draw is made in any case, so that a fixed value changes nothing else of a scan.
    """
    activity = float(rng.uniform(560, 780))
    hours = float(np.clip(rng.normal(3.3, 0.6), 2, 5))
    speed = float(rng.choice([4.43, 3.33, 2.5], p=[0.8, 0.12, 0.08]))
    activity = protocol.activity_mbq or activity
    hours = protocol.uptake_hours or hours
    speed = protocol.speed_mm_s or speed
    decayed = activity / 700 * 2 ** ((3.0 - hours) / TC99M_HALF_LIFE_HOURS)
    counts = REFERENCE_COUNTS * decayed * REFERENCE_SPEED_MM_S / speed
    counts *= COLLIMATORS[protocol.collimator].sensitivity
    counts *= DIFFICULTIES[protocol.difficulty].counts
    counts *= rng.lognormal(0, 0.09)
    scatter = np.clip(rng.normal(0.45, 0.06), 0.3, 0.6)
    background = rng.uniform(0.04, 0.11) * (protocol.pixel_mm / REFERENCE_PIXEL_MM) ** 2
    # A faint scan is not all background: what is left of a late or small dose must show.
    background = min(background, MOST_BACKGROUND * counts / (protocol.rows * protocol.columns))
    return Acquisition(
        camera=camera,
        activity_mbq=round(activity, 1),
        uptake_hours=round(hours, 2),
        speed_mm_s=speed,
        counts_per_view=float(counts),
        scatter_ratio=float(scatter),
        background=float(background),
        gap_front_mm=float(rng.uniform(15, 45)),
        gap_back_mm=float(rng.uniform(30, 50)),
    )
