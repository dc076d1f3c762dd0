"""What a patient has: the lesions of his class, and the harmless findings that any class may show.

In: label, patient, skeleton, generator. Out: `Condition`, findings placed on points of the cloud
and factors on the uptake of structures. Rates are choices within what
clinics report; ratios lie near those of real scans.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from tfds_builder.phantom.patient import Patient
from tfds_builder.phantom.skeleton import Skeleton

LABELS = ("normal", "metastasis", "arthritis", "thyroid_carcinoma")
PROPORTIONS = (0.32, 0.26, 0.26, 0.16)
"""Share of each class among the patients: a choice of this phantom, normal the most frequent."""

MILD_RATIO = 1.5
"""Degenerative uptake up to this ratio to its surroundings is normal for the age, not disease."""
ARTHRITIS_RATIO = 3.5
"""Uptake of a diseased joint starts at this ratio."""


@dataclasses.dataclass(frozen=True)
class Focus:
    """A Gaussian focus at a point of the cloud; `sigma_mm` in x, y, z, `offset_mm` from the point.

    `ratio` is the peak over the surroundings in the view that shows it better; of a cold finding,
    what is left of the uptake in its middle.
    """

    point: int
    sigma_mm: tuple[float, float, float]
    ratio: float
    offset_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One lesion (number from 1) or one harmless finding (number 0); a cold one lacks uptake."""

    kind: str
    site: str
    foci: tuple[Focus, ...]
    number: int = 0
    cold: bool = False


@dataclasses.dataclass(frozen=True)
class Condition:
    """All findings, and factors on the uptake of structures (by name) and of soft tissue."""

    label: str
    findings: tuple[Finding, ...]
    factors: dict[str, float]
    soft_factor: float
    bladder_size: float
    buckle: bool


def sample_label(rng: np.random.Generator) -> str:
    """Draws a class with the documented proportions."""
    return LABELS[int(rng.choice(len(LABELS), p=PROPORTIONS))]


def sample_condition(
    label: str,
    patient: Patient,
    skeleton: Skeleton,
    rng: np.random.Generator,
    contrast: float = 1.0,
) -> Condition:
    """Draws the findings of a patient of that class; `contrast` changes no draw.

    It multiplies the contrast (ratio less one) of every true lesion.
    """
    ward = _Ward(skeleton, patient, rng)
    soft = 1.0
    if label == "metastasis":
        soft = ward.metastases()
    elif label == "arthritis":
        ward.arthritis()
    elif label == "thyroid_carcinoma":
        ward.thyroid_carcinoma()
    ward.confounders(label)
    findings = tuple(_contrasted(finding, contrast) for finding in ward.findings)
    return Condition(
        label, findings, ward.factors, soft * float(rng.lognormal(0, 0.12)),
        float(np.clip(rng.lognormal(0, 0.25), 0.55, 1.5)), rng.random() < 0.06,
    )  # fmt: skip


def _contrasted(finding: Finding, contrast: float) -> Finding:
    if not finding.number:
        return finding
    foci = tuple(
        dataclasses.replace(f, ratio=max(1 + (f.ratio - 1) * contrast, 0.0)) for f in finding.foci
    )
    return dataclasses.replace(finding, foci=foci)


_METASTASIS_SITES = (
    (0.30, 2.8, 5.0, [f"vertebra_{v}" for v in ("T3", "T4", "T5", "T6", "T7", "T8", "T9")]
     + [f"vertebra_{v}" for v in ("T10", "T11", "T12", "L1", "L2", "L3", "L4", "L5")] * 2
     + ["vertebra_C4", "vertebra_C6", "vertebra_T1"]),
    (0.25, 3.0, 5.5, ["ilium", "ilium", "ilium", "iliac_crest", "sacroiliac", "sacrum", "sacrum",
                      "ischium", "pubis", "acetabulum"]),
    (0.22, 3.0, 5.2, [f"rib_{n}" for n in range(2, 11)]),
    (0.06, 2.6, 4.2, ["manubrium", "sternum_body"]),
    (0.06, 5.0, 14.0, ["trochanter", "femur_head", "femur_shaft", "femur_shaft"]),
    (0.04, 6.0, 16.0, ["humerus_shaft", "humerus_shaft", "humerus_head"]),
    (0.04, 2.8, 5.5, ["skull_vault"]),
    (0.03, 2.8, 4.8, ["scapula_blade", "scapula_border"]),
)  # fmt: skip
"""Share of the lesions, lowest and highest ratio, structures: spine > pelvis > ribs > sternum."""

_JOINTS = {
    "knee": (0.34, ("knee_medial", "knee_lateral", "patella"), 8.0),
    "shoulder": (0.24, ("acromioclavicular", "glenoid", "humerus_head"), 7.5),
    "hand": (0.20, ("wrist", "wrist", "knuckle_1", "knuckle_2", "knuckle_3", "finger_2"), 5.0),
    "foot": (0.22, ("ankle", "midfoot", "toe_1", "midfoot"), 7.0),
    "hip": (0.16, ("acetabulum", "femur_head"), 7.0),
    "sternoclavicular": (0.12, ("sternoclavicular",), 5.0),
    "elbow": (0.06, ("elbow",), 5.0),
    "facet": (0.16, ("facet_L3", "facet_L4", "facet_L5", "facet_C5"), 5.0),
}
"""Rate in arthritis, the periarticular structures, the spread of a focus in mm."""


def _upper_half(points: np.ndarray) -> np.ndarray:
    return points[:, 2] < np.percentile(points[:, 2], 55)


def _lateral_part(points: np.ndarray) -> np.ndarray:
    """Where both views see about as much of a lesion."""
    return np.abs(points[:, 0]) > np.percentile(np.abs(points[:, 0]), 60)


class _Ward:
    """Draws findings one after another; holds what they share."""

    def __init__(self, skeleton: Skeleton, patient: Patient, rng: np.random.Generator) -> None:
        self.skeleton = skeleton
        self.patient = patient
        self.rng = rng
        self.findings: list[Finding] = []
        self.factors: dict[str, float] = {}
        self.lesions = 0

    def metastases(self) -> float:
        superscan = self.rng.random() < 0.04
        count = 1 + int(self.rng.geometric(0.26))
        if superscan:
            count = int(self.rng.integers(12, 22))
            self._superscan()
        for _ in range(min(count, 24)):
            self._metastasis(cold=self.rng.random() < 0.04)
        return 0.6 if superscan else 1.0

    def _superscan(self) -> None:
        axial = ("cervical", "thoracic", "lumbar", "ribs", "sternum", "pelvis", "hip", "skull")
        for structure in self.skeleton.structures:
            if structure.group in axial:
                self._scale(structure.name, 1.9)
            elif structure.group in ("kidney", "renal_pelvis", "bladder"):
                self._scale(structure.name, 0.15)

    def _metastasis(self, cold: bool = False) -> None:
        rates = np.array([site[0] for site in _METASTASIS_SITES])
        site = _METASTASIS_SITES[int(self.rng.choice(len(rates), p=rates / rates.sum()))]
        _, low, high, names = site
        name = self._side(str(self.rng.choice(names)))
        ratio = float(self.rng.uniform(low, high))
        size = float(self.rng.uniform(7.0, 12.0))
        if cold:
            size, ratio = 1.3 * size, 0.15
        if name.startswith("rib"):
            size *= 0.7
        extra = int(self.rng.integers(0, 3)) if not name.startswith("vertebra") else 0
        if name.startswith(("femur_shaft", "humerus_shaft")):
            anchor = self._point(name, _upper_half)
        elif name.startswith(("rib", "skull")) and self.rng.random() < 0.7:
            anchor = self._point(name, _lateral_part)
        else:
            anchor = self._point(name)
        self._lesion("metastasis", name, self._chain(name, anchor, extra, size, ratio), cold)

    def arthritis(self) -> None:
        rates = np.array([joint[0] for joint in _JOINTS.values()])
        count = int(self.rng.choice([1, 2, 3, 4], p=[0.08, 0.34, 0.34, 0.24]))
        chosen = self.rng.choice(len(_JOINTS), count, replace=False, p=rates / rates.sum())
        joints = [list(_JOINTS)[int(k)] for k in chosen]
        if set(joints) <= {"facet", "sternoclavicular", "elbow"}:
            joints.append(str(self.rng.choice(["knee", "shoulder", "foot", "hand"])))
        for joint in joints:
            severity = float(self.rng.uniform(ARTHRITIS_RATIO, 8.0))
            self._joint(joint, severity, bilateral=self.rng.random() < 0.78, lesion=True)

    def _joint(self, joint: str, severity: float, bilateral: bool, lesion: bool) -> None:
        _, names, size = _JOINTS[joint]
        sides = ["left", "right"] if bilateral else [str(self.rng.choice(["left", "right"]))]
        count = int(self.rng.integers(min(2, len(names)), min(len(names), 4) + 1))
        picked = list(self.rng.choice(len(names), count, replace=False))
        for side in sides:
            own = max(1 + (severity - 1) * float(self.rng.uniform(0.75, 1.15)), 1.05)
            for index in picked:
                if len(picked) > 1 and self.rng.random() < 0.15:
                    continue
                name = f"{names[index]}_{side}"
                foci = self._chain(name, self._point(name), 0, size, own)
                if lesion:
                    self._lesion("arthritis", name, foci)
                else:
                    self.findings.append(Finding("degenerative", name, foci))

    def thyroid_carcinoma(self) -> None:
        sides = [("left",), ("right",), ("left", "right")][int(self.rng.integers(0, 3))]
        for side in sides:
            name = f"thyroid_lobe_{side}"
            size = float(self.rng.uniform(6.5, 9.5))
            ratio = float(self.rng.uniform(6.0, 13.0))
            foci = self._chain(name, self._point(name), int(self.rng.integers(0, 2)), size, ratio)
            self._lesion("thyroid", name, foci)
        if self.rng.random() < 0.4:
            for _ in range(int(self.rng.integers(1, 5))):
                name = self._side("neck_nodes")
                ratio = float(self.rng.uniform(2.2, 4.5))
                self._lesion("node", name, self._chain(name, self._point(name), 0, 4.5, ratio))
        if self.rng.random() < 0.2:
            for _ in range(int(self.rng.integers(1, 4))):
                self._metastasis()

    def confounders(self, label: str) -> None:
        self._injection_site()
        self._urine()
        self._neck()
        self._young_and_dominant()
        self._rib_fractures()
        self._degenerative(0.55 if label != "arthritis" else 0.3)
        if self.rng.random() < 0.2:
            name = str(self.rng.choice(["maxilla", "mandible"]))
            self._harmless("dental", name, 4.0, self.rng.uniform(1.3, 2.0))
        if self.patient.age > 55 and self.rng.random() < 0.06:
            side = str(self.rng.choice(["left", "right"]))
            joint = [("femur_head", "acetabulum"), ("knee_medial", "knee_lateral", "knee_center")]
            for name in joint[int(self.rng.integers(0, 2))]:
                self._scale(f"{name}_{side}", 0.15)

    def _injection_site(self) -> None:
        if self.rng.random() > 0.4:
            return
        name = self._side(
            str(self.rng.choice(["elbow", "forearm_shafts", "wrist", "metacarpal_3"]))
        )
        wide = self.rng.random() < 0.25
        size = self.rng.uniform(8, 14) if wide else self.rng.uniform(3.5, 6)
        ratio = self.rng.uniform(2, 5) if wide else self.rng.uniform(4, 14)
        self._harmless("injection_site", name, size, ratio)

    def _urine(self) -> None:
        if self.rng.random() < 0.16:
            for side in ("left", "right") if self.rng.random() < 0.4 else (self._any_side(),):
                self._scale(f"renal_pelvis_{side}", float(self.rng.uniform(3, 9)))
                self._scale(f"kidney_{side}", float(self.rng.uniform(1.2, 2.2)))
        elif self.rng.random() < 0.03:
            side = self._any_side()
            self._scale(f"kidney_{side}", 0.02)
            self._scale(f"renal_pelvis_{side}", 0.02)
        if self.rng.random() < 0.1:
            name = str(self.rng.choice(["perineum", self._side("femur_shaft")]))
            self._harmless("contamination", name, self.rng.uniform(4, 8), self.rng.uniform(2, 5))
        if self.rng.random() < 0.04:
            name = self._side("femur_shaft")
            aside = 75.0 if name.endswith("left") else -75.0
            size = (22.0, 15.0, 32.0)
            focus = Focus(self._point(name), size, float(self.rng.uniform(5, 12)), (aside, 20, 0))
            self.findings.append(Finding("urine_bag", name, (focus,)))

    def _neck(self) -> None:
        kind = self.rng.random()
        if kind < 0.07:
            uptake = float(self.rng.uniform(5, 12))
            for side in ("left", "right"):
                self._scale(f"thyroid_lobe_{side}", uptake * float(self.rng.uniform(0.85, 1.15)))
            self._scale("thyroid_isthmus", uptake)
            if self.rng.random() < 0.6:
                self._scale("stomach", float(self.rng.uniform(4, 9)))
                for side in ("left", "right"):
                    self._scale(f"salivary_{side}", float(self.rng.uniform(8, 18)))
        elif kind < 0.17:
            self._scale("thyroid_cartilage", float(self.rng.uniform(3, 7)))
        elif kind < 0.20:
            name = self._side("thyroid_lobe")
            self._harmless("nodule", name, 5.0, self.rng.uniform(1.4, 2.0))

    def _young_and_dominant(self) -> None:
        plates = ("knee_medial", "knee_lateral", "ankle", "wrist", "humerus_head", "trochanter")
        if self.patient.age < 21:
            for name in plates:
                for side in ("left", "right"):
                    self._scale(f"{name}_{side}", float(self.rng.uniform(1.6, 2.4)))
        if self.rng.random() < 0.3:
            side = "right" if self.rng.random() < 0.85 else "left"
            for name in ("humerus_head", "acromioclavicular", "glenoid"):
                self._scale(f"{name}_{side}", float(self.rng.uniform(1.2, 1.7)))
        if self.rng.random() < 0.2:
            for name in ("sternoclavicular_left", "sternoclavicular_right", "sternal_angle"):
                self._scale(name, float(self.rng.uniform(1.2, 1.8)))

    def _rib_fractures(self) -> None:
        if self.rng.random() > 0.07:
            return
        side, first = self._any_side(), int(self.rng.integers(3, 8))
        point = self._point(f"rib_{first}_{side}")
        for number in range(first, first + int(self.rng.integers(2, 5))):
            name = f"rib_{number}_{side}"
            structure = self.skeleton.named(name)
            points = self.skeleton.points[structure.start : structure.stop]
            gap = np.abs(points[:, :2] - self.skeleton.points[point, :2]).sum(axis=1)
            point = structure.start + int(gap.argmin())
            size, ratio = float(self.rng.uniform(3, 4)), float(self.rng.uniform(1.5, 2.4))
            focus = Focus(point, (size,) * 3, ratio)
            self.findings.append(Finding("rib_fracture", name, (focus,)))

    def _degenerative(self, rate: float) -> None:
        chance = rate * float(np.clip((self.patient.age - 35) / 30, 0, 1))
        for joint in _JOINTS:
            if self.rng.random() < chance * 0.5:
                self._joint(
                    joint, float(self.rng.uniform(1.15, MILD_RATIO)), self.rng.random() < 0.6, False
                )

    def _scale(self, name: str, factor: float) -> None:
        self.factors[name] = self.factors.get(name, 1.0) * factor

    def _any_side(self) -> str:
        return str(self.rng.choice(["left", "right"]))

    def _side(self, name: str) -> str:
        return name if name in self.skeleton.index else f"{name}_{self._any_side()}"

    def _point(self, name: str, keep: Callable[[np.ndarray], np.ndarray] | None = None) -> int:
        structure = self.skeleton.named(name)
        choice = np.arange(structure.start, structure.stop)
        if keep is not None:
            choice = choice[keep(self.skeleton.points[choice])]
        return int(self.rng.choice(choice))

    def _chain(
        self, name: str, anchor: int, extra: int, size: float, ratio: float
    ) -> tuple[Focus, ...]:
        """The focus at `anchor` and up to `extra` more on the same structure, close to it."""
        structure = self.skeleton.named(name)
        points = self.skeleton.points[structure.start : structure.stop]
        gap = np.linalg.norm(points - self.skeleton.points[anchor], axis=1)
        near = structure.start + np.flatnonzero((gap > 0.8 * size) & (gap < 2.2 * size))
        chosen = [anchor]
        if extra and len(near):
            chosen += [int(p) for p in self.rng.choice(near, extra)]
        height = 1 + (ratio - 1) / len(chosen) ** 0.5
        spread = self.rng.uniform(0.8, 1.25, (len(chosen), 3)) * size
        return tuple(
            Focus(point, tuple(float(s) for s in row), float(height))
            for point, row in zip(chosen, spread, strict=True)
        )

    def _lesion(self, kind: str, site: str, foci: tuple[Focus, ...], cold: bool = False) -> None:
        self.lesions += 1
        self.findings.append(Finding(kind, site, foci, self.lesions, cold))

    def _harmless(self, kind: str, name: str, size: float, ratio: float) -> None:
        foci = self._chain(name, self._point(name), 0, float(size), float(ratio))
        self.findings.append(Finding(kind, name, foci))
