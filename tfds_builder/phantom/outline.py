"""The skin of a patient in a pose, as maps of the image: where it lies, and what soft tissue gives.

In: `Patient`, `Pose`, matrix. Out: `Outline`, which the camera attenuates with.
"""

import dataclasses

import numpy as np

from tfds_builder.phantom.anatomy import breadth, place
from tfds_builder.phantom.grid import Grid
from tfds_builder.phantom.patient import Patient, Pose
from tfds_builder.phantom.skeleton import ELBOW


@dataclasses.dataclass(frozen=True)
class Outline:
    """The body as seen from the front, maps of shape (rows, columns), float32, in mm.

    `front` and `back` are the y of the skin, `thickness` the tissue along the ray weighted by its
    activity, `lung` the share of the attenuation that the chest keeps (1 outside the lungs).
    """

    front: np.ndarray
    back: np.ndarray
    soft_front: np.ndarray
    soft_back: np.ndarray
    lung: np.ndarray


# z, middle x, middle y, half width, half depth of the reference outline, in mm.
_HEAD = ((0, 0, -6, 8, 8), (8, 0, -6, 32, 40), (30, 0, -6, 62, 76), (70, 0, -6, 77, 96),
         (110, 0, -4, 80, 100), (150, 0, 0, 76, 96), (190, 0, 8, 64, 84), (222, 0, 18, 46, 68),
         (236, 0, 24, 20, 50), (240, 0, 26, 2, 30))  # fmt: skip
_NECK = ((170, 0, -14, 48, 50), (230, 0, -12, 58, 58), (270, 0, -16, 64, 60), (310, 0, -16, 66, 60))
_TRUNK = ((244, 0, -20, 62, 50), (258, 0, -16, 110, 58), (272, 0, -12, 150, 66),
          (300, 0, -10, 172, 80), (340, 0, -4, 168, 92), (400, 0, 0, 160, 104),
          (480, 0, 0, 156, 108), (560, 0, 0, 150, 106), (640, 0, 0, 152, 102),
          (720, 0, -2, 166, 102), (800, 0, -8, 178, 98), (850, 0, -12, 172, 92),
          (890, 0, -16, 150, 76), (905, 0, -16, 90, 50), (912, 0, -16, 10, 10))  # fmt: skip
_LEG = ((790, 92, -14, 80, 80), (860, 94, -12, 84, 86), (940, 96, -6, 76, 82),
        (1040, 94, -2, 66, 74), (1130, 88, 0, 58, 64), (1188, 86, 0, 56, 60),
        (1250, 86, -8, 52, 58), (1320, 84, -14, 52, 60), (1420, 82, -10, 44, 50),
        (1520, 80, -6, 34, 40), (1575, 80, -2, 34, 40), (1610, 80, 4, 36, 50),
        (1650, 82, 40, 40, 40), (1685, 84, 74, 34, 22), (1700, 84, 80, 16, 12),
        (1704, 84, 80, 2, 4))  # fmt: skip
_ARM = ((258, 158, -8, 8, 20), (270, 164, -8, 32, 40), (295, 172, -8, 41, 52),
        (360, 188, -9, 46, 54), (450, 194, -10, 43, 48), (560, 206, -12, 40, 42),
        (600, 208, -8, 40, 42), (700, 210, -4, 34, 34), (782, 212, 0, 27, 24))  # fmt: skip
_HAND = ((775, 212, 0, 28, 22), (820, 212, 2, 38, 22), (860, 212, 8, 38, 20),
         (905, 212, 16, 28, 14), (930, 212, 20, 12, 8), (934, 212, 20, 2, 3))  # fmt: skip
_PARTS = (
    ("head", _HEAD, 0.85, 2, 0.0), ("trunk", _NECK, 0.95, 2, 0.5), ("trunk", _TRUNK, 1.0, 3, 1.0),
    ("leg_left", _LEG, 0.8, 2, 0.7), ("leg_right", _LEG, 0.8, 2, 0.7),
    ("upper_arm_left", _ARM, 0.85, 2, 0.35), ("upper_arm_right", _ARM, 0.85, 2, 0.35),
    ("hand_left", _HAND, 0.85, 2, 0.1), ("hand_right", _HAND, 0.85, 2, 0.1),
)  # fmt: skip
"""Segment, knots, activity of the soft tissue, roundness (2 is an ellipse), share of the fat."""


def body_outline(
    patient: Patient, pose: Pose, grid: Grid, top_mm: float, attenuation: float
) -> Outline:
    """Maps of the skin and of soft tissue attenuated on its way to each camera.

    `top_mm` is the z of the crown in the image, `attenuation` is per mm.
    """
    front = np.full(grid.shape, -1e3, np.float32)
    back = np.full(grid.shape, 1e3, np.float32)
    parts = []
    for segment, knots, activity, power, fat_share in _PARTS:
        drawn = _draw_part(knots, segment, patient, pose, grid, top_mm, power, fat_share)
        window, middle, half = drawn
        inside = half > 0
        front[window] = np.where(inside, np.maximum(front[window], middle + half), front[window])
        back[window] = np.where(inside, np.minimum(back[window], middle - half), back[window])
        parts.append((window, middle, half, activity))
    soft = np.zeros((2, *grid.shape), np.float32)
    for window, middle, half, activity in parts:
        lost = (1 - np.exp(-2 * attenuation * half)) / attenuation * activity
        for view, cover in enumerate((front[window] - middle - half, middle - half - back[window])):
            shade = np.exp(-attenuation * np.clip(cover, 0, 80))
            soft[view][window] = np.maximum(soft[view][window], lost * shade)
    lung = _lung_map(patient, pose, grid, top_mm)
    return Outline(front, back, soft[0], soft[1], lung)


def _draw_part(
    knots: tuple,
    segment: str,
    patient: Patient,
    pose: Pose,
    grid: Grid,
    top_mm: float,
    power: int,
    fat_share: float,
) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    table = np.array(knots, float)
    side = -1.0 if segment.endswith("right") else 1.0
    fat = (patient.body_mass_index - 23.5) * fat_share
    centers = table[:, 1:3] * (side, 1.0)
    placed = place(np.column_stack([centers, table[:, 0]]), segment, patient, pose)
    if segment.startswith("upper_arm"):
        forearm = place(
            np.column_stack([centers, table[:, 0]]), "fore" + segment[6:], patient, pose
        )
        placed = np.where(table[:, :1] > ELBOW[2], forearm, placed)
    wide = breadth(patient, table[:, 0]) if segment in ("trunk", "head") else patient.breadth
    half_width = table[:, 3] * wide + fat * 3.2 * np.minimum(1, table[:, 3] / 40)
    half_depth = table[:, 4] * patient.breadth + fat * 4.5 * np.minimum(1, table[:, 4] / 40)
    z = placed[:, 2] + top_mm
    first, last = int(z[0] / grid.pixel_mm), int(z[-1] / grid.pixel_mm) + 1
    rows = slice(max(0, first), min(grid.rows, last))
    level = grid.z_mm(np.arange(rows.start, rows.stop))
    x, y, a, b = (
        np.interp(level, z, column).astype(np.float32)
        for column in (placed[:, 0], placed[:, 1], half_width, half_depth)
    )
    low = int(np.clip(grid.column((x - a).min()) - 1, 0, grid.columns - 2))
    high = int(np.clip(grid.column((x + a).max()) + 3, low + 1, grid.columns))
    pixel_x = grid.x_mm(np.arange(low, high)).astype(np.float32)
    offset = np.abs((pixel_x[None] - x[:, None]) / np.maximum(a, 1)[:, None])
    shape = offset * offset if power == 2 else offset * offset * offset
    half = b[:, None] * np.sqrt(np.clip(1 - shape, 0, None))
    return (rows, slice(low, high)), np.broadcast_to(y[:, None], half.shape), half


def _lung_map(patient: Patient, pose: Pose, grid: Grid, top_mm: float) -> np.ndarray:
    spot = place(np.array([[0, 0, 330.0], [0, 0, 500.0]]), "trunk", patient, pose)
    z = grid.z_mm(np.arange(grid.rows, dtype=np.float32))[:, None] - top_mm
    x = grid.x_mm(np.arange(grid.columns, dtype=np.float32))[None]
    rise = np.clip((z - spot[0, 2] + 15) / 30, 0, 1) * np.clip((spot[1, 2] + 25 - z) / 50, 0, 1)
    aside = np.abs(x - spot[:, 0].mean())
    return (1 - 0.45 * rise * np.clip((aside - 22) / 25, 0, 1) * (aside < 135)).astype(np.float32)
