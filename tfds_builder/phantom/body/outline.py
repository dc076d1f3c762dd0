"""The skin of a patient in a pose, as maps of the image: where it lies, and what soft tissue gives.

In: `Patient`, `Pose`, matrix. Out: `Outline`, which the camera attenuates with.
"""

import dataclasses

import numpy as np

from tfds_builder.phantom.body.anatomy import breadth, place
from tfds_builder.phantom.body.patient import Patient, Pose
from tfds_builder.phantom.body.skeleton import ELBOW
from tfds_builder.phantom.body.texture import soft_factors
from tfds_builder.phantom.camera.grid import Grid

ATTENUATION_PER_MM = 0.0154
"""Water at 140.5 keV."""


@dataclasses.dataclass(frozen=True)
class Outline:
    """The body as seen from the front, maps of shape (rows, columns), float32, in mm.

    `front` and `back` are the y of the skin, `soft_front` and `soft_back` the soft tissue along the
    ray, weighted by its relative activity and attenuated on its way to either camera, `lung` the
    share of the attenuation that the chest keeps (1 outside the lungs). `soft_mm3` is all soft
    tissue, weighted by its relative activity.
    """

    front: np.ndarray
    back: np.ndarray
    soft_front: np.ndarray
    soft_back: np.ndarray
    lung: np.ndarray
    soft_mm3: float


# z, middle x, middle y, half width, half depth of the reference outline, in mm.
_HEAD = ((0, 0, -6, 8, 8), (8, 0, -6, 42, 50), (30, 0, -6, 70, 82), (70, 0, -6, 80, 98),
         (110, 0, -4, 72, 98), (150, 0, 0, 66, 94), (190, 0, 8, 66, 84), (222, 0, 18, 50, 68),
         (236, 0, 24, 20, 50), (240, 0, 26, 2, 30))  # fmt: skip
_NECK = ((160, 0, -18, 52, 44), (195, 0, -16, 79, 54), (240, 0, -16, 90, 60),
         (270, 0, -20, 76, 60), (310, 0, -20, 72, 60))  # fmt: skip
_TRUNK = ((226, 0, -29, 60, 44), (248, 0, -23, 98, 54), (268, 0, -17, 142, 64),
          (300, 0, -15, 168, 80), (340, 0, -9, 168, 92), (400, 0, -5, 162, 104),
          (480, 0, -5, 157, 108), (560, 0, -5, 150, 106), (620, 0, -5, 149, 103),
          (690, 0, -7, 162, 102), (760, 0, -11, 176, 100), (820, 0, -15, 180, 96),
          (865, 0, -17, 172, 88), (892, 0, -21, 150, 72), (906, 0, -21, 90, 50),
          (912, 0, -21, 10, 10))  # fmt: skip
_BREAST = ((338, 74, 84, 6, 4), (352, 76, 86, 40, 15), (376, 80, 88, 58, 24),
           (404, 82, 90, 62, 28), (428, 82, 90, 54, 24), (448, 80, 90, 34, 14),
           (458, 80, 90, 6, 4))  # fmt: skip
_LEG = ((790, 94, -17, 78, 80), (860, 99, -15, 82, 86), (940, 98, -9, 75, 82),
        (1040, 94, -5, 67, 74), (1120, 88, -3, 57, 64), (1160, 85, -1, 54, 60),
        (1195, 85, -1, 54, 58), (1235, 86, -9, 49, 54), (1300, 86, -17, 53, 60),
        (1345, 85, -17, 51, 58), (1420, 82, -13, 42, 50), (1500, 79, -9, 31, 38),
        (1548, 78, -5, 31, 40), (1590, 77, 3, 30, 46), (1640, 76, 33, 34, 36),
        (1680, 76, 59, 30, 20), (1697, 76, 71, 16, 12), (1702, 76, 75, 2, 4))  # fmt: skip
_ARM = ((252, 150, -8, 8, 20), (266, 158, -8, 32, 40), (292, 167, -8, 41, 50),
        (360, 181, -9, 44, 52), (450, 187, -10, 40, 46), (560, 198, -12, 36, 40),
        (600, 201, -8, 37, 40), (700, 203, -4, 31, 32), (782, 204, 0, 25, 22))  # fmt: skip
_HAND = ((775, 204, 0, 27, 20), (815, 204, 2, 39, 20), (860, 204, 8, 42, 18),
         (905, 204, 16, 34, 13), (930, 204, 20, 16, 8), (934, 204, 20, 2, 3))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Part:
    """Knots of a part, its soft tissue's activity, the power of its rim and its share of fat."""

    segment: str
    knots: tuple[tuple[float, ...], ...]
    activity: float
    power: int = 2
    fat: float = 0.0


_PARTS = (
    _Part("head", _HEAD, 0.85),
    _Part("trunk", _NECK, 0.95, fat=0.5),
    _Part("trunk", _TRUNK, 1.0, power=3, fat=1.0),
    *(_Part(f"leg_{side}", _LEG, 0.84, fat=0.7) for side in ("left", "right")),
    *(_Part(f"upper_arm_{side}", _ARM, 0.85, fat=0.35) for side in ("left", "right")),
    *(_Part(f"hand_{side}", _HAND, 0.85, fat=0.1) for side in ("left", "right")),
)
_BREASTS = tuple(_Part(f"breast_{side}", _BREAST, 0.9, fat=0.5) for side in ("left", "right"))
_FAT_WIDTH, _FAT_DEPTH = 3.2, 4.5
"""Growth of half the width and half the depth of the trunk for each kg/m2, mm."""
_LEAN_INDEX = 23.5
"""Body mass index of the reference outline."""


def body_outline(
    patient: Patient, pose: Pose, grid: Grid, top_mm: float, texture: np.ndarray
) -> Outline:
    """Maps of the skin and of soft tissue attenuated on its way to each camera.

    `top_mm` is the z of the crown in the image, `texture` that of the soft tissue, as sampled.
    """
    front = np.full(grid.shape, -1e3, np.float32)
    back = np.full(grid.shape, 1e3, np.float32)
    parts = (*_PARTS, *(_BREASTS if patient.sex == "F" else ()))
    drawn = [(part, _draw(part, patient, pose, grid, top_mm)) for part in parts]
    for _, (window, middle, half) in drawn:
        inside = half > 0
        front[window] = np.where(inside, np.maximum(front[window], middle + half), front[window])
        back[window] = np.where(inside, np.minimum(back[window], middle - half), back[window])
    soft = np.zeros((2, *grid.shape), np.float32)
    thickness = np.zeros(grid.shape, np.float32)
    for part, (window, middle, half) in drawn:
        given = (1 - np.exp(-2 * ATTENUATION_PER_MM * half)) / ATTENUATION_PER_MM
        covers = front[window] - middle - half, middle - half - back[window]
        for view, cover in zip(soft, covers, strict=True):
            seen = given * np.exp(-ATTENUATION_PER_MM * np.clip(cover, 0, 80))
            if part in _BREASTS:
                view[window] += part.activity * seen
            else:
                view[window] = np.maximum(view[window], part.activity * seen)
        if part not in _BREASTS:
            thickness[window] = np.maximum(thickness[window], 2 * part.activity * half)
    soft *= soft_factors(texture, grid, top_mm)
    lung = _lung_map(patient, pose, grid, top_mm)
    volume = float(thickness.sum(dtype=np.float64)) * grid.pixel_mm**2
    return Outline(front, back, soft[0], soft[1], lung, volume)


def _draw(
    part: _Part, patient: Patient, pose: Pose, grid: Grid, top_mm: float
) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """Where a part lies: a window of the image, the y of its middle, half its depth there."""
    table = np.array(part.knots, float)
    limb, _, side = part.segment.rpartition("_")
    fat = (patient.body_mass_index - _LEAN_INDEX) * part.fat
    middles = np.column_stack(
        [table[:, 1:3] * (-1.0 if side == "right" else 1.0, 1.0), table[:, 0]]
    )
    placed = place(middles, "trunk" if limb == "breast" else part.segment, patient, pose)
    if limb == "upper_arm":
        forearm = place(middles, f"forearm_{side}", patient, pose)
        placed = np.where(table[:, :1] > ELBOW[2], forearm, placed)
    wide = patient.breadth if limb else breadth(patient, table[:, 0])
    half_width = table[:, 3] * wide + fat * _FAT_WIDTH * np.minimum(1, table[:, 3] / 40)
    half_depth = table[:, 4] * patient.breadth + fat * _FAT_DEPTH * np.minimum(1, table[:, 4] / 40)
    z = np.maximum.accumulate(placed[:, 2]) + top_mm
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
    shape = offset * offset if part.power == 2 else offset * offset * offset
    half = b[:, None] * np.sqrt(np.clip(1 - shape, 0, None))
    return (rows, slice(low, high)), np.broadcast_to(y[:, None], half.shape), half


def _lung_map(patient: Patient, pose: Pose, grid: Grid, top_mm: float) -> np.ndarray:
    spot = place(np.array([[0, 0, 330.0], [0, 0, 500.0]]), "trunk", patient, pose)
    z = grid.z_mm(np.arange(grid.rows, dtype=np.float32))[:, None] - top_mm
    x = grid.x_mm(np.arange(grid.columns, dtype=np.float32))[None]
    rise = np.clip((z - spot[0, 2] + 15) / 30, 0, 1) * np.clip((spot[1, 2] + 25 - z) / 50, 0, 1)
    aside = np.abs(x - spot[:, 0].mean())
    return (1 - 0.45 * rise * np.clip((aside - 22) / 25, 0, 1) * (aside < 135)).astype(np.float32)
