"""Harmless findings that any class may show, at the same rates in all: what a reader must discount.

In: a `Chart` that has its lesions already. Out: findings of number 0, factors and metal in it.
Rates depend on age and sex alone, but for what would cover a true lesion, and are choices within
what clinics report.
"""

import numpy as np

from tfds_builder.phantom.disease.condition import Chart, Focus, Shade
from tfds_builder.phantom.disease.lesions import JOINTS, joint_foci

MILD_RATIO = 1.5
"""Degenerative uptake up to this ratio to its surroundings is normal for the age, not disease."""
MOST_STUDIES = 3

_SIDES = ("left", "right")


def add_confounders(chart: Chart) -> None:
    """Draws them all, one kind after another."""
    for study in range(MOST_STUDIES):
        _injection_site(chart, study)
        _excreted(chart, study)
    for draw in (_kidneys, _neck, _shoulder_and_sternum, _rib_fractures, _compression_fracture,
                 _degenerative, _dental, _frontal_bone, _soft_tissue, _prosthesis,
                 _metal):  # fmt: skip
        draw(chart)


def _sign(name: str) -> float:
    return 1.0 if name.endswith("left") else -1.0


def _injection_site(chart: Chart, study: int) -> None:
    """In view in 42 % of the studies; some leaked, and a few of these show the draining vein."""
    if not chart.chance(0.42):
        return
    places = ("elbow", "forearm_shafts", "wrist", "metacarpal_3")
    name = chart.sided(str(chart.rng.choice(places)))
    leaked = chart.chance(0.25)
    size = chart.uniform(8, 14) if leaked else chart.uniform(3.5, 6)
    ratio = chart.uniform(2, 5) if leaked else chart.uniform(4, 14)
    chart.harmless("injection_site", name, chart.spot(name, size, ratio), study=study)
    if leaked and chart.chance(0.5):
        _draining_vein(chart, name.rpartition("_")[2], name.startswith("elbow"), study)


def _draining_vein(chart: Chart, side: str, above_elbow: bool, study: int) -> None:
    parts = [f"humerus_shaft_{side}"]
    if not above_elbow:
        parts.insert(0, f"forearm_shafts_{side}")
    size = (3.5, 3.5, 18.0)
    for part in parts:
        foci = tuple(
            Focus(chart.along(part, share), size, chart.uniform(1.3, 2.4), (-8 * _sign(side), 8, 0))
            for share in (0.9, 0.75, 0.6, 0.45, 0.3, 0.15)
        )
        chart.harmless("draining_vein", part, *foci, study=study)
    if chart.chance(0.4):
        name = f"humerus_head_{side}"
        offset = (-32 * _sign(side), 10.0, 45.0)
        node = Focus(chart.along(name, 0.5), (5.0, 5.0, 5.0), chart.uniform(1.8, 4), offset)
        chart.harmless("axillary_node", name, node, study=study)


def _excreted(chart: Chart, study: int) -> None:
    """Urine on the skin or in a bag; tracer in the bowel."""
    if chart.chance(0.1):
        name = chart.sided(str(chart.rng.choice(["perineum", "femur_shaft", "pubis"])))
        focus = chart.spot(name, chart.uniform(4, 8), chart.uniform(2, 5))
        chart.harmless("contamination", name, focus, study=study)
    if chart.chance(0.04):
        name = chart.sided("femur_shaft")
        aside = 75 * _sign(name)
        bag = Focus(chart.point(name), (22, 15, 32), chart.uniform(5, 12), (aside, 20.0, 0.0))
        chart.harmless("urine_bag", name, bag, study=study)
        if chart.chance(0.6):
            tube = [
                Focus(chart.along(name, share), (3, 3, 16), chart.uniform(1.4, 2.5),
                      ((1.6 * share - 0.5) * aside, 60.0, 0.0))
                for share in (0.02, 0.12, 0.22, 0.32)
            ]  # fmt: skip
            chart.harmless("urine_tube", name, *tube, study=study)
    if chart.chance(0.03):
        point = chart.along("vertebra_L4", 0.5)
        turns = [
            Focus(point, (14, 10, 10), chart.uniform(1.15, 1.6),
                  (x, 55.0, chart.uniform(-25, 25)))
            for x in np.linspace(-85, 85, 5) if chart.chance(0.7)
        ]  # fmt: skip
        if turns:
            chart.harmless("bowel", "vertebra_L4", *turns, study=study)


def _kidneys(chart: Chart) -> None:
    """Retention, a dilated renal pelvis, urine left in a ureter, one kidney missing."""
    kind = chart.rng.random()
    if kind < 0.12:
        for side in _SIDES if chart.chance(0.4) else (chart.side(),):
            chart.scale(f"renal_pelvis_{side}", chart.uniform(3, 9))
            chart.scale(f"kidney_{side}", chart.uniform(1.2, 2.2))
    elif kind < 0.16:
        side = chart.side()
        chart.scale(f"kidney_{side}", chart.uniform(1.2, 1.8))
        chart.scale(f"renal_pelvis_{side}", chart.uniform(2, 6))
        name = f"renal_pelvis_{side}"
        wide = Focus(chart.along(name, 0.5), (14, 12, 22), chart.uniform(1.5, 3))
        chart.harmless("hydronephrosis", name, wide)
    elif kind < 0.185:
        side = chart.side()
        for name in ("kidney", "renal_pelvis", "ureter"):
            chart.scale(f"{name}_{side}", 0.02)
    if chart.chance(0.06):
        chart.scale(chart.sided("ureter"), chart.uniform(3, 8))


def _neck(chart: Chart) -> None:
    """Mostly harmless: the whole gland (with free pertechnetate), its cartilage, a faint nodule."""
    kind, age = chart.rng.random(), chart.patient.age
    if kind < 0.10:
        operated = chart.has_lesion(("thyroid_lobe_left", "thyroid_lobe_right"))
        uptake = chart.uniform(3, 7) if operated else chart.uniform(6, 16)
        for side in _SIDES:
            chart.scale(f"thyroid_lobe_{side}", uptake * chart.uniform(0.85, 1.15))
        chart.scale("thyroid_isthmus", uptake)
        if chart.chance(0.55):
            chart.scale("stomach", chart.uniform(4, 9))
            for side in _SIDES:
                chart.scale(f"salivary_{side}", chart.uniform(8, 18))
    elif kind < 0.10 + float(np.interp(age, (25, 70), (0.05, 0.15))):
        chart.scale("thyroid_cartilage", chart.uniform(5, 13))
    elif kind > 0.94:
        free = [f"thyroid_lobe_{s}" for s in _SIDES if not chart.has_lesion((f"thyroid_lobe_{s}",))]
        if free:
            name = str(chart.rng.choice(free))
            chart.harmless("nodule", name, chart.spot(name, 5.0, chart.uniform(1.6, 3.2)))
    elif kind > 0.92:
        for side in _SIDES:
            chart.scale(f"salivary_{side}", chart.uniform(6, 14))


def _shoulder_and_sternum(chart: Chart) -> None:
    if chart.chance(0.3):
        side = "right" if chart.chance(0.85) else "left"
        for name in ("humerus_head", "acromioclavicular", "glenoid"):
            chart.scale(f"{name}_{side}", chart.uniform(1.2, 1.7))
    if chart.chance(0.2):
        for name in ("sternoclavicular_left", "sternoclavicular_right", "sternal_angle"):
            chart.scale(name, chart.uniform(1.2, 1.8))


def _rib_fractures(chart: Chart) -> None:
    """Healing, in a row: neighbouring ribs at about the same distance from the midline."""
    if not chart.chance(0.07):
        return
    side, first = chart.side(), int(chart.rng.integers(3, 8))
    point = chart.point(f"rib_{first}_{side}")
    for number in range(first, first + int(chart.rng.integers(2, 6))):
        name = f"rib_{number}_{side}"
        part = chart.part(name)
        gap = np.abs(part[:, :2] - chart.skeleton.points[point, :2]).sum(axis=1)
        point = chart.skeleton.named(name).start + int(gap.argmin())
        size = chart.uniform(3.4, 4.4)
        chart.harmless(
            "rib_fracture", name, Focus(point, (size, size, size), chart.uniform(1.7, 2.9))
        )


def _compression_fracture(chart: Chart) -> None:
    """A flat band across one vertebra, healing, from brittle bone."""
    old = chart.patient.age > 60
    if not chart.chance((0.06 if chart.patient.sex == "F" else 0.02) if old else 0.005):
        return
    name = f"vertebra_{chart.rng.choice(['T8', 'T10', 'T11', 'T12', 'L1', 'L2', 'L4'])}"
    band = Focus(chart.along(name, 0.5), (13.0, 6.0, 3.0), chart.uniform(1.4, 1.9))
    chart.harmless("compression_fracture", name, band)


def _degenerative(chart: Chart) -> None:
    """Mild, about joints that have no disease; facets and knees most of all."""
    rate = 0.27 * float(np.clip((chart.patient.age - 35) / 30, 0, 1))
    for name, joint in JOINTS.items():
        if not chart.chance(rate):
            continue
        pairs = joint_foci(chart, name, chart.uniform(1.15, MILD_RATIO), chart.chance(0.6))
        if not chart.has_lesion(f"{part}_{side}" for part in joint.structures for side in _SIDES):
            for site, foci in pairs:
                chart.harmless("degenerative", site, *foci)


def _dental(chart: Chart) -> None:
    if chart.chance(0.2):
        name = str(chart.rng.choice(["maxilla", "mandible"]))
        chart.harmless("dental", name, chart.spot(name, 4.0, chart.uniform(1.3, 2.0)))


def _frontal_bone(chart: Chart) -> None:
    """Hyperostosis frontalis interna: both sides of the forehead, in women."""
    if not (chart.patient.sex == "F" and chart.chance(0.06)):
        return
    ratio = chart.uniform(1.2, 1.6)
    foci = [
        Focus(chart.nearest("skull_vault", (x, 70, 60)), (17, 12, 17), ratio) for x in (-28, 28)
    ]
    chart.harmless("frontal_hyperostosis", "skull_vault", *foci)


def _soft_tissue(chart: Chart) -> None:
    """Breasts, and a calcified fibroid above the bladder."""
    if chart.patient.sex != "F":
        return
    young = chart.patient.age < 50
    if chart.chance(0.14 if young else 0.06):
        point = chart.along("sternum_body", 0.6)
        ratio = chart.uniform(1.15, 1.5)
        foci = [
            Focus(point, (28, 15, 24), ratio * chart.uniform(0.95, 1.05), (x, 10.0, 15.0))
            for x in (-78.0, 78.0)
        ]
        chart.harmless("breast", "sternum_body", *foci)
    if not young and chart.chance(0.02):
        offset = (chart.uniform(-25, 25), 0.0, -55.0)
        focus = Focus(chart.along("bladder", 0.5), (15, 15, 15), chart.uniform(1.3, 2), offset)
        chart.harmless("fibroid", "bladder", focus)


def _prosthesis(chart: Chart) -> None:
    """A cold hip or knee; in half of them bone heals mildly about it."""
    if not (chart.patient.age > 55 and chart.chance(0.07)):
        return
    side, hip = chart.side(), chart.chance(0.5)
    parts = ("femur_head", "acetabulum") if hip else (
        "knee_medial", "knee_lateral", "knee_center", "patella"
    )  # fmt: skip
    shafts = ("femur_shaft",) if hip else ("femur_shaft", "tibia_shaft")
    if chart.has_lesion(f"{name}_{side}" for name in (*parts, *shafts, "trochanter")):
        return
    for name in parts:
        chart.scale(f"{name}_{side}", 0.12)
    thigh = f"femur_shaft_{side}"
    if hip:
        stem = [Focus(chart.along(thigh, s), (11, 11, 14), 0.2) for s in (0.04, 0.14, 0.24, 0.34)]
        chart.harmless("prosthesis", thigh, *stem, cold=True)
        rim = ((f"trochanter_{side}", 0.4), (thigh, 0.46))
    else:
        rim = ((thigh, 0.97), (f"tibia_shaft_{side}", 0.06))
    if chart.chance(0.5):
        for name, share in rim:
            focus = Focus(chart.along(name, share), (7, 7, 6), chart.uniform(1.3, 1.9))
            chart.harmless("periprosthetic", name, focus)


def _metal(chart: Chart) -> None:
    """Cold in the anterior view: buckle, pacemaker, pendant, coins."""
    add = chart.shades.append
    if chart.chance(0.06):
        add(Shade("buckle", chart.along("vertebra_L5", 0.5), (25, 18), 0.45, (0.0, 15.0)))
    if chart.patient.age > 60 and chart.chance(0.05):
        side = "left" if chart.chance(0.8) else "right"
        point = chart.along(f"clavicle_{side}", 0.4)
        add(Shade("pacemaker", point, (24, 22), 0.5, (0.0, chart.uniform(28, 45))))
    if chart.chance(0.03):
        add(Shade("pendant", chart.along("sternum_body", chart.uniform(0, 0.9)), (9, 10), 0.5))
    if chart.chance(0.02):
        name = chart.sided("trochanter")
        add(Shade("coins", chart.along(name, 0.3), (13, 13), 0.5, (chart.uniform(-15, 15), 0.0)))
