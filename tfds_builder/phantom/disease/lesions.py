"""True lesions: metastases, arthritis and thyroid carcinoma, where they sit and how they look.

In: a `Chart`. Out: findings with a number in it. Sites and numbers follow what clinics report;
ratios are set so that counts over those of the other side lie near real ones: rib 2.5, pelvis 2
to 3, humerus 7 to 17.
"""

import dataclasses

import numpy as np

from tfds_builder.phantom.body.skeleton import ANKLE, ELBOW, HIP, KNEE, SHOULDER, WRIST
from tfds_builder.phantom.disease.condition import Chart

ARTHRITIS_RATIO = 3.2
"""Uptake of a diseased joint starts at this ratio."""
SUPERSCAN_SHARE = 0.025
"""Share of the metastasis patients whose skeleton takes up all that there is."""
COLD_SHARE = 0.05
"""Share of the further metastases of a patient that lack uptake, where bone is thick."""


@dataclasses.dataclass(frozen=True)
class Region:
    """Where metastases sit: share of all, structures (repeated for weight), ratio, size in mm.

    Ratio (the median) and size (the median standard deviation of a focus) are log-normal.
    """

    share: float
    structures: tuple[str, ...]
    ratio: float
    size_mm: float


_THORACIC = tuple(f"vertebra_T{n}" for n in range(3, 13))
_LUMBAR = tuple(f"vertebra_L{n}" for n in range(1, 6))
REGIONS = {
    "spine": Region(
        0.345,
        (*_THORACIC, *_THORACIC[7:], *_LUMBAR, *_LUMBAR, "vertebra_C4", "vertebra_C6",
         "vertebra_T1", "vertebra_T2"),
        5.0, 9.2,
    ),
    "pelvis": Region(
        0.24,
        (*("ilium",) * 4, *("iliac_crest",) * 2, *("sacroiliac",) * 2, *("sacrum",) * 3,
         *("ischium",) * 2, *("pubis",) * 2, "acetabulum"),
        5.2, 9.2,
    ),
    "ribs": Region(0.205, tuple(f"rib_{n}" for n in range(2, 12)), 5.0, 6.8),
    "sternum": Region(0.06, ("manubrium", "sternum_body"), 4.6, 8.2),
    "femur": Region(0.045, ("trochanter", "femur_shaft", "femur_shaft"), 11.0, 9.0),
    "femur head": Region(0.01, ("femur_head",), 7.0, 8.5),
    "humerus": Region(0.028, ("humerus_shaft",), 21.0, 9.0),
    "humerus head": Region(0.007, ("humerus_head",), 10.0, 8.5),
    "skull": Region(0.035, ("skull_vault",), 4.8, 7.7),
    "scapula": Region(0.025, ("scapula_blade", "scapula_border"), 4.8, 8.0),
}  # fmt: skip
"""Spine > pelvis > ribs > sternum, then the upper ends of the long bones, skull and scapula."""
_THICK = ("spine", "pelvis", "sternum", "skull")


@dataclasses.dataclass(frozen=True)
class Joint:
    """A joint: rate in arthritis, periarticular structures, size of a focus, the joint's middle."""

    rate: float
    structures: tuple[str, ...]
    size_mm: float
    middle: tuple[float, float, float] | None = None


JOINTS = {
    "knee": Joint(0.34, ("knee_medial", "knee_lateral", "patella"), 7.0, KNEE),
    "shoulder": Joint(0.24, ("acromioclavicular", "glenoid", "humerus_head"), 6.7, SHOULDER),
    "hand": Joint(
        0.22,
        ("wrist", "wrist", "metacarpal_1", "knuckle_1", "knuckle_2", "knuckle_3", "finger_2",
         "finger_3"),
        5.0, WRIST,
    ),
    "foot": Joint(0.22, ("ankle", "midfoot", "toe_1", "midfoot"), 6.3, ANKLE),
    "hip": Joint(0.16, ("acetabulum", "femur_head"), 6.5, HIP),
    "sternoclavicular": Joint(0.12, ("sternoclavicular",), 5.0),
    "elbow": Joint(0.04, ("elbow",), 5.0, ELBOW),
    "facet": Joint(0.16, ("facet_L3", "facet_L4", "facet_L5", "facet_C5"), 5.0),
}  # fmt: skip
_MINOR = {"facet", "sternoclavicular", "elbow"}
_JOINT_SITES = frozenset(site for joint in JOINTS.values() for site in joint.structures)


def add_metastases(chart: Chart, contrast: float) -> float:
    """One to many, and in a few patients a superscan; returns a factor on soft tissue.

    The first of a patient is never in a bone end that arthritis would explain as well. `contrast`
    is the factor on the contrast of lesions: here, on what a superscan has diffusely.
    """
    rng = chart.rng
    superscan = chart.chance(SUPERSCAN_SHARE)
    count = min(1 + int(rng.poisson(rng.gamma(3.0, 3.7 / 3.0))), 24)
    if superscan:
        count = int(rng.integers(12, 22))
        _diffuse(chart, contrast)
    activity = chart.spread(1.0, 0.12, 0.7, 1.4)
    for number in range(count):
        cold = number > 0 and chart.chance(COLD_SHARE)
        _metastasis(chart, (0.5 if superscan else 1.0) * activity, cold, in_joint=number > 0)
    return 1 / (1 + contrast) if superscan else 1.0


def _diffuse(chart: Chart, contrast: float) -> None:
    axial = ("cervical", "thoracic", "lumbar", "ribs", "sternum", "pelvis", "hip", "skull")
    for structure in chart.skeleton.structures:
        gain = {"shoulder": 0.9, "leg": 0.6, "arm": 0.6}.get(structure.group, 0.0)
        gain = 1.3 * chart.spread(1.0, 0.15, 0.6, 1.6) if structure.group in axial else gain
        if gain:
            chart.scale(structure.name, 1 + gain * contrast)
        elif structure.group in ("kidney", "renal_pelvis", "ureter", "bladder"):
            chart.scale(structure.name, 0.12)


def _metastasis(
    chart: Chart, activity: float = 1.0, cold: bool = False, in_joint: bool = True
) -> None:
    name, site = _place(chart)
    while not in_joint and site.rpartition("_")[0] in _JOINT_SITES:
        name, site = _place(chart)
    region = REGIONS[name]
    high = 1 + 1.6 * (region.ratio - 1)
    ratio = max(1 + (region.ratio - 1) * activity * chart.spread(1.0, 0.28, 0.6, 2.0), 1.3)
    size = chart.spread(region.size_mm, 0.25, 0.6 * region.size_mm, 1.9 * region.size_mm)
    extra = int(chart.rng.integers(0, 3)) if name != "spine" else 0
    foci = chart.chain(site, _anchor(chart, site), extra, size, min(ratio, high))
    cold = cold and name in _THICK
    if cold:
        wide = tuple(1.2 * s for s in foci[0].sigma_mm)
        foci = (dataclasses.replace(foci[0], sigma_mm=wide, ratio=0.12),)
    chart.lesion("metastasis", site, foci, cold)


def _place(chart: Chart) -> tuple[str, str]:
    """A region and a structure of it."""
    shares = np.array([region.share for region in REGIONS.values()])
    name = list(REGIONS)[int(chart.rng.choice(len(shares), p=shares / shares.sum()))]
    return name, chart.sided(str(chart.rng.choice(REGIONS[name].structures)))


def _anchor(chart: Chart, site: str) -> int:
    if site.startswith(("femur_shaft", "humerus_shaft")):
        return chart.point(site, lambda p: p[:, 2] < np.percentile(p[:, 2], 55))
    if site.startswith(("rib", "skull")) and chart.chance(0.7):
        # There both views see about as much of a lesion.
        return chart.point(site, lambda p: np.abs(p[:, 0]) > np.percentile(np.abs(p[:, 0]), 60))
    return chart.point(site)


def coexisting_arthritis_rate(age: int) -> float:
    """How often a patient of another disease has diseased joints too: more with the years."""
    return float(np.interp(age, (30, 45, 55, 70, 85), (0.03, 0.14, 0.24, 0.34, 0.40)))


def add_arthritis(chart: Chart, joints: tuple[float, ...] = (0.15, 0.42, 0.30, 0.13)) -> None:
    """Diseased joints, one to four with about these probabilities, mostly on both sides.

    Joints and severity increase with age.
    """
    rng = chart.rng
    years = float(np.clip((chart.patient.age - 40) / 45, 0, 1))
    shares = np.asarray(joints) * (1 + years * np.linspace(-0.6, 0.6, len(joints)))
    count = 1 + int(rng.choice(len(joints), p=shares / shares.sum()))
    rates = np.array([joint.rate for joint in JOINTS.values()])
    chosen = rng.choice(len(JOINTS), count, replace=False, p=rates / rates.sum())
    names = [list(JOINTS)[int(k)] for k in chosen]
    if set(names) <= _MINOR:
        names.append(str(rng.choice(["knee", "shoulder", "foot", "hand"])))
    for name in names:
        severity = ARTHRITIS_RATIO + 3.5 * float(rng.beta(1.3 + 1.2 * years, 1.9))
        for site, foci in joint_foci(chart, name, severity, chart.chance(0.84)):
            chart.lesion("arthritis", site, foci)


def joint_foci(chart: Chart, name: str, severity: float, bilateral: bool) -> list:
    """Pairs of a structure and its foci, about one joint or a pair of joints of a severity."""
    joint = JOINTS[name]
    known = len(joint.structures)
    count = int(chart.rng.integers(min(2, known), min(known, 4) + 1))
    picked = list(chart.rng.choice(known, count, replace=False))
    pairs = []
    for side in ("left", "right") if bilateral else (chart.side(),):
        own = max(1 + (severity - 1) * chart.uniform(0.75, 1.15), 1.05)
        for order, index in enumerate(picked):
            if order and chart.chance(0.15) and bilateral:
                continue
            site = f"{joint.structures[index]}_{side}"
            anchor = _periarticular(chart, site, joint, side)
            pairs.append((site, chart.chain(site, anchor, 0, joint.size_mm, own)))
    return pairs


def _periarticular(chart: Chart, site: str, joint: Joint, side: str) -> int:
    """A point of the structure's half next to the joint."""
    if joint.middle is None or site.startswith(("toe", "finger", "knuckle", "midfoot")):
        return chart.point(site)
    middle = np.asarray(joint.middle) * ((1 if side == "left" else -1), 1, 1)

    def near(points: np.ndarray) -> np.ndarray:
        gap = np.linalg.norm(points - middle, axis=1)
        return gap <= np.median(gap)

    return chart.point(site, near)


def add_thyroid_carcinoma(chart: Chart) -> None:
    """Uptake in the thyroid bed, on one side or both, in some patients in nodes and in bone."""
    rng = chart.rng
    for side in [("left",), ("right",), ("left", "right")][int(rng.integers(0, 3))]:
        site = f"thyroid_lobe_{side}"
        size = chart.uniform(7.0, 10.0)
        ratio = chart.spread(9.5, 0.3, 5.5, 17.0)
        foci = chart.chain(site, chart.point(site), int(rng.integers(0, 2)), size, ratio)
        chart.lesion("thyroid", site, foci)
    if chart.chance(0.42):
        for _ in range(int(rng.integers(1, 5))):
            site = chart.sided("neck_nodes")
            ratio, size = chart.spread(3.2, 0.3, 2.0, 6.0), chart.uniform(4.0, 6.5)
            chart.lesion("node", site, chart.chain(site, chart.point(site), 0, size, ratio))
    if chart.chance(0.2):
        for _ in range(int(rng.integers(1, 4))):
            _metastasis(chart)
