"""Fits the reference skeleton to one patient and pose: bone points, uptakes and the body outline.

In: `Patient`, `Pose`, generators. Out: placed points (n, 3) in mm, weights (n,) and outline maps.
"""

import dataclasses

import numpy as np

from tfds_builder.phantom.patient import Patient, Pose
from tfds_builder.phantom.skeleton import (
    ANKLE,
    ELBOW,
    HIP,
    KNEE,
    SEGMENTS,
    SHOULDER,
    WRIST,
    Skeleton,
)

PIXEL_MM = 2.40
ROWS, COLUMNS = 1024, 256

REFERENCE_HEIGHT_MM = 1700.0
_LANDMARKS = (-50.0, 228.0, 302.0, 560.0, 725.0, HIP[2], KNEE[2], ANKLE[2], 1750.0)

_PROPORTIONS = (1.0, 0.8, 1.05, 1.0, 1.0, 1.0, 1.0, 1.0)
"""Supine, the chin comes down towards the sternum: the neck looks shorter than it is."""

GROUP_SPREAD = {
    "skull": 0.25, "face": 0.3, "jaw": 0.35, "cervical": 0.2, "thoracic": 0.12, "lumbar": 0.15,
    "ribs": 0.15, "sternum": 0.2, "shoulder": 0.15, "pelvis": 0.12, "arm": 0.2, "elbow": 0.3,
    "hand": 0.25, "hip": 0.15, "leg": 0.2, "knee": 0.22, "foot": 0.22, "kidney": 0.4,
    "renal_pelvis": 0.7, "ureter": 0.9, "bladder": 0.7, "blood": 0.4, "stomach": 0.4,
    "thyroid": 0.3, "cartilage": 0.5, "nodes": 0.0, "salivary": 0.4, "skin": 0.0,
}  # fmt: skip
"""Log-normal spread of the uptake of each group between patients."""


@dataclasses.dataclass(frozen=True)
class Outline:
    """The body as seen from the front, maps of shape (1024, 256), float32, in mm.

    `front` and `back` are the y of the skin, `thickness` the tissue along the ray weighted by its
    activity, `lung` the share of the attenuation that the chest keeps (1 outside the lungs).
    """

    front: np.ndarray
    back: np.ndarray
    soft_front: np.ndarray
    soft_back: np.ndarray
    lung: np.ndarray


def _axial(patient: Patient, z: np.ndarray) -> np.ndarray:
    """The z of the patient for a z of the reference body; its total height is the patient's."""
    steps = np.diff(_LANDMARKS) * _PROPORTIONS * np.append(patient.segments, 1.0)
    knots = np.concatenate([[_LANDMARKS[0]], _LANDMARKS[0] + np.cumsum(steps)])
    scale = patient.height_mm / np.interp(REFERENCE_HEIGHT_MM, _LANDMARKS, knots)
    zero = np.interp(0.0, _LANDMARKS, knots)
    return np.interp(z, _LANDMARKS, (knots - zero) * scale)


def _breadth(patient: Patient, z: np.ndarray | float) -> np.ndarray:
    sizes = (1.0, 1.0, patient.shoulders, 1.0, 1.0, patient.pelvis, patient.pelvis)
    return patient.breadth * np.interp(z, (0, 230, 290, 440, 620, 720, 900), sizes)


def place(points: np.ndarray, segment: str, patient: Patient, pose: Pose) -> np.ndarray:
    """Moves reference points (n, 3) of one segment to where they lie on the patient, in mm.

    z is still measured from the crown; x from the middle of the table.
    """
    x, y, z = (np.array(points[:, axis], np.float32) for axis in range(3))
    part, _, name = segment.rpartition("_")
    if part:
        side = 1.0 if name == "left" else -1.0
        x *= side
        x, y = _limb(x, y, z, part, 0 if name == "left" else 1, pose)
        joint = SHOULDER if part != "leg" else HIP
        x = side * (x + (_breadth(patient, joint[2]) - 1) * joint[0])
    else:
        if segment == "head":
            x, y, z = _head(x, y, z, pose)
        x *= _breadth(patient, z)
        y *= patient.breadth
    x += _spine_shift(patient, z)
    y += patient.kyphosis_mm * np.exp(-(((z - 250) / 160) ** 2)) * (0.0 if part else 1.0)
    z = _axial(patient, z).astype(np.float32)
    turned = np.cos(pose.roll) * x + np.sin(pose.roll) * y
    y = np.cos(pose.roll) * y - np.sin(pose.roll) * x
    x = turned + np.tan(pose.tilt) * (z - 0.47 * patient.height_mm) + pose.shift_x
    return np.stack([x, y, z], axis=1)


def _spine_shift(patient: Patient, z: np.ndarray) -> np.ndarray:
    inside = np.clip((z - 230) / 560, 0, 1)
    first, second = patient.scoliosis_mm
    return first * np.sin(np.pi * inside) + second * np.sin(2 * np.pi * inside)


def _head(x: np.ndarray, y: np.ndarray, z: np.ndarray, pose: Pose) -> tuple[np.ndarray, ...]:
    c, s = np.cos(pose.head_turn), np.sin(pose.head_turn)
    x, y = c * x + s * (y + 15), c * (y + 15) - s * x - 15
    c, s = np.cos(pose.head_nod), np.sin(pose.head_nod)
    y, z = c * (y + 15) + s * (z - 190) - 15, 190 + c * (z - 190) - s * (y + 15)
    return x + np.tan(pose.head_tilt) * (260 - z), y, z


def _limb(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, part: str, index: int, pose: Pose
) -> tuple[np.ndarray, np.ndarray]:
    """Bends a limb whose x grows outwards."""
    if part == "leg":
        turn = -pose.leg_turn[index] * np.clip((z - HIP[2]) / (KNEE[2] - HIP[2]), 0, 1)
        axis = np.interp(z, (HIP[2], KNEE[2], ANKLE[2]), (HIP[0], KNEE[0], ANKLE[0]))
        c, s = np.cos(turn), np.sin(turn)
        x, y = axis + c * (x - axis) - s * y, c * y + s * (x - axis)
        return x + np.tan(pose.leg[index]) * np.maximum(z - HIP[2], 0), y
    if part == "hand":
        c, s = np.cos(pose.hand_turn[index]), np.sin(pose.hand_turn[index])
        x, y = WRIST[0] + c * (x - WRIST[0]) - s * y, c * y + s * (x - WRIST[0])
    x = x + np.tan(pose.arm[index]) * (z - SHOULDER[2])
    below = np.maximum(z - ELBOW[2], 0)
    return x + np.tan(pose.elbow[index]) * below, y + np.tan(pose.forearm_lift[index]) * below


def place_skeleton(skeleton: Skeleton, patient: Patient, pose: Pose) -> np.ndarray:
    """All points of the skeleton on the patient, shape (n, 3), mm."""
    placed = np.empty_like(skeleton.points)
    for segment in SEGMENTS:
        rows = [s for s in skeleton.structures if s.segment == segment]
        span = slice(rows[0].start, rows[-1].stop)
        placed[span] = place(skeleton.points[span], segment, patient, pose)
    return placed


def structure_uptakes(skeleton: Skeleton, patient: Patient, rng: np.random.Generator) -> np.ndarray:
    """Relative uptake of each structure in this patient, shape (structures,), around 1."""
    group = {name: rng.lognormal(0, spread) for name, spread in GROUP_SPREAD.items()}
    if patient.sex == "F":
        group["skull"] *= 1.15
    side = rng.lognormal(0, 0.07)
    uptake = np.empty(len(skeleton.structures))
    for number, structure in enumerate(skeleton.structures):
        own = rng.lognormal(0, 0.09 if structure.group in ("ribs", "thoracic", "lumbar") else 0.06)
        hand = {"left": side, "right": 1 / side}.get(structure.name.rpartition("_")[2], 1.0)
        limb = structure.group in ("shoulder", "arm", "elbow", "hand")
        uptake[number] = group[structure.group] * own * (hand if limb else 1.0)
    return uptake


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


def body_outline(patient: Patient, pose: Pose, top_mm: float, attenuation: float) -> Outline:
    """Maps of the skin and of soft tissue attenuated on its way to each camera.

    `top_mm` is the z of the crown in the image, `attenuation` is per mm.
    """
    front = np.full((ROWS, COLUMNS), -1e3, np.float32)
    back = np.full((ROWS, COLUMNS), 1e3, np.float32)
    parts = []
    for segment, knots, activity, power, fat_share in _PARTS:
        drawn = _draw_part(knots, segment, patient, pose, top_mm, power, fat_share)
        window, middle, half = drawn
        inside = half > 0
        front[window] = np.where(inside, np.maximum(front[window], middle + half), front[window])
        back[window] = np.where(inside, np.minimum(back[window], middle - half), back[window])
        parts.append((window, middle, half, activity))
    soft = np.zeros((2, ROWS, COLUMNS), np.float32)
    for window, middle, half, activity in parts:
        lost = (1 - np.exp(-2 * attenuation * half)) / attenuation * activity
        for view, cover in enumerate((front[window] - middle - half, middle - half - back[window])):
            shade = np.exp(-attenuation * np.clip(cover, 0, 80))
            soft[view][window] = np.maximum(soft[view][window], lost * shade)
    lung = _lung_map(patient, pose, top_mm)
    return Outline(front, back, soft[0], soft[1], lung)


def _draw_part(
    knots: tuple,
    segment: str,
    patient: Patient,
    pose: Pose,
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
    wide = _breadth(patient, table[:, 0]) if segment in ("trunk", "head") else patient.breadth
    half_width = table[:, 3] * wide + fat * 3.2 * np.minimum(1, table[:, 3] / 40)
    half_depth = table[:, 4] * patient.breadth + fat * 4.5 * np.minimum(1, table[:, 4] / 40)
    z = placed[:, 2] + top_mm
    rows = slice(max(0, int(z[0] / PIXEL_MM)), min(ROWS, int(z[-1] / PIXEL_MM) + 1))
    grid = (np.arange(rows.start, rows.stop) + 0.5) * PIXEL_MM
    x, y, a, b = (
        np.interp(grid, z, column).astype(np.float32)
        for column in (placed[:, 0], placed[:, 1], half_width, half_depth)
    )
    low = int(np.clip((x - a).min() / PIXEL_MM + COLUMNS / 2 - 1, 0, COLUMNS - 2))
    high = int(np.clip((x + a).max() / PIXEL_MM + COLUMNS / 2 + 2, low + 1, COLUMNS))
    pixel_x = ((np.arange(low, high) + 0.5 - COLUMNS / 2) * PIXEL_MM).astype(np.float32)
    offset = np.abs((pixel_x[None] - x[:, None]) / np.maximum(a, 1)[:, None])
    shape = offset * offset if power == 2 else offset * offset * offset
    half = b[:, None] * np.sqrt(np.clip(1 - shape, 0, None))
    return (rows, slice(low, high)), np.broadcast_to(y[:, None], half.shape), half


def _lung_map(patient: Patient, pose: Pose, top_mm: float) -> np.ndarray:
    spot = place(np.array([[0, 0, 330.0], [0, 0, 500.0]]), "trunk", patient, pose)
    z = (np.arange(ROWS, dtype=np.float32)[:, None] + 0.5) * PIXEL_MM - top_mm
    x = (np.arange(COLUMNS, dtype=np.float32)[None] + 0.5 - COLUMNS / 2) * PIXEL_MM
    rise = np.clip((z - spot[0, 2] + 15) / 30, 0, 1) * np.clip((spot[1, 2] + 25 - z) / 50, 0, 1)
    aside = np.abs(x - spot[:, 0].mean())
    return (1 - 0.45 * rise * np.clip((aside - 22) / 25, 0, 1) * (aside < 135)).astype(np.float32)
