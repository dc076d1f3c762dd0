"""Fits the reference skeleton to one patient and pose: bone points, uptakes and the body outline.

In: `Patient`, `Pose`, generators. Out: placed points (n, 3) in mm, weights (n,) and outline maps.
"""

import numpy as np

from tfds_builder.phantom.body.patient import Patient, Pose
from tfds_builder.phantom.body.skeleton import (
    ANKLE,
    ELBOW,
    HIP,
    KNEE,
    SEGMENTS,
    SHOULDER,
    WRIST,
    Skeleton,
)

_REFERENCE_HEIGHT_MM = 1700.0
_LANDMARKS = (-50.0, 228.0, 302.0, 560.0, 725.0, HIP[2], KNEE[2], ANKLE[2], 1750.0)

_PROPORTIONS = (1.0, 0.77, 1.05, 1.0, 1.0, 1.0, 1.0, 1.0)
"""Supine, the chin comes down towards the sternum: the neck looks shorter than it is."""

GROUP_SPREAD = {
    "skull": 0.08, "face": 0.13, "jaw": 0.2, "cervical": 0.1, "thoracic": 0.05, "lumbar": 0.06,
    "ribs": 0.07, "sternum": 0.12, "shoulder": 0.09, "pelvis": 0.06, "arm": 0.08, "elbow": 0.15,
    "hand": 0.18, "hip": 0.08, "leg": 0.06, "knee": 0.15, "foot": 0.18, "growth": 0.25,
    "kidney": 0.22, "renal_pelvis": 0.5, "ureter": 0.8, "bladder": 0.45, "blood": 0.3,
    "stomach": 0.3, "thyroid": 0.3, "cartilage": 0.5, "nodes": 0.0, "salivary": 0.4, "skin": 0.0,
}  # fmt: skip
"""Log-normal spread of the uptake of each group between patients."""


def _axial(patient: Patient, z: np.ndarray) -> np.ndarray:
    """The z of the patient for a z of the reference body; its total height is the patient's."""
    steps = np.diff(_LANDMARKS) * _PROPORTIONS * np.append(patient.segments, 1.0)
    knots = np.concatenate([[_LANDMARKS[0]], _LANDMARKS[0] + np.cumsum(steps)])
    scale = patient.height_mm / np.interp(_REFERENCE_HEIGHT_MM, _LANDMARKS, knots)
    zero = np.interp(0.0, _LANDMARKS, knots)
    return np.interp(z, _LANDMARKS, (knots - zero) * scale)


def breadth(patient: Patient, z: np.ndarray | float) -> np.ndarray | float:
    """Factor on the reference width at z, which counts in the reference body."""
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
        x, y, z = _limb(x, y, z, part, 0 if name == "left" else 1, pose)
        joint = SHOULDER if part != "leg" else HIP
        x = side * (x + (breadth(patient, joint[2]) - 1) * joint[0])
    else:
        if segment == "head":
            x, y, z = _head(x, y, z, pose)
        x *= breadth(patient, z)
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
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bends a limb whose x grows outwards."""
    if part == "leg":
        turn = -pose.leg_turn[index] * np.clip((z - HIP[2]) / (KNEE[2] - HIP[2]), 0, 1)
        axis = np.interp(z, (HIP[2], KNEE[2], ANKLE[2]), (HIP[0], KNEE[0], ANKLE[0]))
        c, s = np.cos(turn), np.sin(turn)
        x, y = axis + c * (x - axis) - s * y, c * y + s * (x - axis)
        x, y, z = _foot(x, y, z, index, pose)
        return x + np.tan(pose.leg[index]) * np.maximum(z - HIP[2], 0), y, z
    if part == "hand":
        c, s = np.cos(pose.hand_turn[index]), np.sin(pose.hand_turn[index])
        x, y = WRIST[0] + c * (x - WRIST[0]) - s * y, c * y + s * (x - WRIST[0])
    x = x + np.tan(pose.arm[index]) * (z - SHOULDER[2])
    below = np.maximum(z - ELBOW[2], 0)
    return x + np.tan(pose.elbow[index]) * below, y + np.tan(pose.forearm_lift[index]) * below, z


def _foot(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, index: int, pose: Pose
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turns a foot about the shin and bends it at the ankle."""
    share = np.clip((z - ANKLE[2] + 20) / 30, 0, 1)
    turn, point = pose.foot_turn[index] * share, pose.foot_point[index] * share
    c, s = np.cos(turn), np.sin(turn)
    x, y = ANKLE[0] + c * (x - ANKLE[0]) + s * y, c * y - s * (x - ANKLE[0])
    c, s = np.cos(point), np.sin(point)
    return x, c * y - s * (z - ANKLE[2]), ANKLE[2] + c * (z - ANKLE[2]) + s * y


def place_skeleton(skeleton: Skeleton, patient: Patient, pose: Pose) -> np.ndarray:
    """All points of the skeleton on the patient, shape (n, 3), mm."""
    placed = np.empty_like(skeleton.points)
    for segment in SEGMENTS:
        rows = [s for s in skeleton.structures if s.segment == segment]
        span = slice(rows[0].start, rows[-1].stop)
        placed[span] = place(skeleton.points[span], segment, patient, pose)
    return placed


_NOT_BONE = ("kidney", "renal_pelvis", "ureter", "bladder", "blood", "stomach", "thyroid",
             "cartilage", "nodes", "salivary", "skin")  # fmt: skip


def skeletal_activity(skeleton: Skeleton, uptakes: np.ndarray) -> float:
    """Activity of the whole skeleton at these factors (structures,), in uptake times mm3."""
    bone = np.array([structure.group not in _NOT_BONE for structure in skeleton.structures])
    weights = skeleton.weights * (uptakes * bone)[skeleton.owner]
    return float(weights.sum(dtype=np.float64))


def growth_plate_uptake(age: int) -> float:
    """Share of a child's uptake in the growth plates: they close between 15 and 21 years."""
    return float(np.clip((21 - age) / 6, 0, 1))


def structure_uptakes(skeleton: Skeleton, patient: Patient, rng: np.random.Generator) -> np.ndarray:
    """Relative uptake of each structure in this patient, shape (structures,), around 1."""
    group = {name: rng.lognormal(0, spread) for name, spread in GROUP_SPREAD.items()}
    if patient.sex == "F":
        group["skull"] *= 1.15
    group["growth"] *= growth_plate_uptake(patient.age)
    side = rng.lognormal(0, 0.07)
    uptake = np.empty(len(skeleton.structures))
    for number, structure in enumerate(skeleton.structures):
        own = rng.lognormal(0, 0.09 if structure.group in ("ribs", "thoracic", "lumbar") else 0.06)
        hand = {"left": side, "right": 1 / side}.get(structure.name.rpartition("_")[2], 1.0)
        limb = structure.group in ("shoulder", "arm", "elbow", "hand")
        uptake[number] = group[structure.group] * own * (hand if limb else 1.0)
    return uptake
