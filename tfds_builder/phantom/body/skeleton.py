"""The reference skeleton and organs of a 1700 mm adult as one labelled point cloud.

Axes in mm: x to the patient's left, y to the front, z from the crown down to the toes. Sizes follow
general adult anatomy; uptakes are relative to each other and were set against clinical scans.
"""

import dataclasses
import functools

import numpy as np

from tfds_builder.phantom.body.shapes import Cloud, arc, ellipsoid, sheet, tube

SEGMENTS = (
    "head", "trunk",
    "upper_arm_left", "upper_arm_right", "forearm_left", "forearm_right",
    "hand_left", "hand_right", "leg_left", "leg_right",
)  # fmt: skip
"""Parts that move on their own, in the order of their points in the cloud."""

VERTEBRAE = (
    *[f"C{n}" for n in range(1, 8)], *[f"T{n}" for n in range(1, 13)],
    *[f"L{n}" for n in range(1, 6)],
)  # fmt: skip

SHOULDER, ELBOW, WRIST = (168.0, -8.0, 292.0), (196.0, -12.0, 562.0), (204.0, 0.0, 782.0)
HIP, KNEE, ANKLE = (90.0, -2.0, 798.0), (84.0, 0.0, 1188.0), (78.0, 0.0, 1552.0)


@dataclasses.dataclass(frozen=True)
class Structure:
    """One named bone part or organ: its points in the cloud and the group that it varies with."""

    name: str
    group: str
    segment: str
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """The cloud: `points` (n, 3) mm, `weights` (n,) uptake times mm3, structures in cloud order."""

    points: np.ndarray
    weights: np.ndarray
    owner: np.ndarray
    structures: tuple[Structure, ...]
    index: dict[str, int]

    def named(self, name: str) -> Structure:
        """The structure of that exact name."""
        return self.structures[self.index[name]]


class _Parts:
    """Collects structures, mirrored where asked."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str, np.ndarray, np.ndarray]] = []

    def add(self, name: str, group: str, segment: str, uptake: float, *clouds: Cloud) -> None:
        points = np.concatenate([cloud[0] for cloud in clouds])
        weights = np.concatenate([np.full(len(p), uptake * v / len(p)) for p, v in clouds])
        self.rows.append((name, group, segment, points, weights))

    def pair(self, name: str, group: str, segment: str, uptake: float, *clouds: Cloud) -> None:
        mirrored = [(points * (-1.0, 1.0, 1.0), volume) for points, volume in clouds]
        for side, parts in (("left", clouds), ("right", mirrored)):
            place = segment if segment in SEGMENTS else f"{segment}_{side}"
            self.add(f"{name}_{side}", group, place, uptake, *parts)


@functools.lru_cache(maxsize=1)
def reference_skeleton() -> Skeleton:
    """Builds the cloud once a process; every patient deforms a copy of it."""
    parts = _Parts()
    for add in (
        _skull,
        _spine,
        _ribs,
        _shoulder_girdle,
        _arms,
        _pelvis,
        _legs,
        _growth_plates,
        _organs,
    ):
        add(parts)
    rows = sorted(parts.rows, key=lambda row: SEGMENTS.index(row[2]))
    structures, start = [], 0
    for name, group, segment, points, _ in rows:
        structures.append(Structure(name, group, segment, start, start + len(points)))
        start += len(points)
    return Skeleton(
        points=np.concatenate([row[3] for row in rows]).astype(np.float32),
        weights=np.concatenate([row[4] for row in rows]).astype(np.float32),
        owner=np.repeat(np.arange(len(rows)), [len(row[3]) for row in rows]),
        structures=tuple(structures),
        index={structure.name: number for number, structure in enumerate(structures)},
    )


def _skull(parts: _Parts) -> None:
    points, volume = ellipsoid((0, -8, 96), (69, 93, 92), hollow=0.9)
    points[:, 0] *= 1 + 0.17 * np.clip((96 - points[:, 2]) / 92, 0, 1)
    fading = 40 * np.mod(0.618034 * np.arange(len(points)), 1.0) - 20
    keep = points[:, 2] < 128 - 0.35 * points[:, 1] + fading
    parts.add("skull_vault", "skull", "head", 10.3, (points[keep], volume * float(keep.mean())))
    parts.add(
        "skull_base", "skull", "head", 3.6,
        ellipsoid((0, -12, 150), (50, 50, 19)), ellipsoid((0, 40, 130), (38, 28, 9)),
    )  # fmt: skip
    parts.pair("mastoid", "skull", "head", 3.0, ellipsoid((52, -22, 158), (11, 15, 16)))
    parts.add("occiput", "skull", "head", 4.5, ellipsoid((0, -78, 138), (26, 10, 16)))
    turn = np.linspace(0, 2 * np.pi, 30)
    orbit = np.stack(
        [31 + 20 * np.cos(turn), 70 - 8 * np.abs(np.cos(turn)), 120 + 17 * np.sin(turn)], axis=1
    )
    parts.pair("orbit", "face", "head", 5.5, tube(orbit, 5.0, wide=(0.3, 1, 0.2)))
    parts.add(
        "nasal_cavity", "face", "head", 9.0,
        ellipsoid((0, 66, 143), (15, 24, 26)), ellipsoid((0, 40, 150), (24, 20, 22)),
    )  # fmt: skip
    parts.pair("maxillary_sinus", "face", "head", 5.5, ellipsoid((28, 58, 156), (15, 18, 17)))
    parts.pair(
        "zygoma", "face", "head", 5.0, tube([(62, 24, 142), (58, 46, 146), (42, 68, 152)], 8)
    )
    jaw = arc([(-30, 42, 180), (-20, 72, 178), (0, 82, 177), (20, 72, 178), (30, 42, 180)])
    parts.add("maxilla", "face", "head", 6.5, tube(jaw, 10, wide=(0, 0, 1)))
    jaw = arc(
        [(-52, 4, 155), (-48, 18, 196), (-26, 66, 208), (0, 78, 212), (26, 66, 208),
         (48, 18, 196), (52, 4, 155)]
    )  # fmt: skip
    parts.add("mandible", "jaw", "head", 5.0, tube(jaw, 11, flat=0.5, wide=(0, 0, 1)))


def vertebra_centers() -> np.ndarray:
    """Centres of the 24 vertebral bodies from C1 to L5, shape (24, 3)."""
    thoracic = 302 + np.concatenate([[0.0], np.cumsum(np.linspace(19.5, 26.0, 11))])
    z = np.concatenate([np.linspace(188, 284, 7), thoracic, np.linspace(582, 712, 5)])
    bend = [(188, -18), (236, -6), (284, -20), (340, -38), (420, -52), (500, -42), (560, -24),
            (645, -10), (712, -28)]  # fmt: skip
    y = np.interp(z, *np.transpose(bend))
    return np.stack([np.zeros(24), y, z], axis=1)


def _spine(parts: _Parts) -> None:
    centers = vertebra_centers()
    gaps = np.gradient(centers[:, 2])
    size = np.interp(np.arange(24), [0, 6, 7, 12, 18, 19, 23], [15, 16, 15, 15, 19, 21, 24])
    uptakes = np.interp(
        np.arange(24), [0, 5, 8, 11, 14, 17, 19, 21, 23], [15, 16, 39, 40, 37, 35, 31, 26, 22]
    )
    for name, (_, y, z), gap, width, uptake in zip(
        VERTEBRAE, centers, gaps, size, uptakes, strict=True
    ):
        region = {"C": "cervical", "T": "thoracic", "L": "lumbar"}[name[0]]
        half = 0.42 * gap
        body = tube([(0, y, z - half), (0, y, z + half)], width, flat=0.78)
        parts.add(f"vertebra_{name}", region, "trunk", uptake, body)
        depth = 0.78 * width
        spinous = ellipsoid((0, y - depth - 26, z + 0.3 * gap), (4.5, 14, 0.3 * gap))
        arch = tube([(-width, y - depth - 7, z), (width, y - depth - 7, z)], 0.22 * gap)
        parts.add(f"arch_{name}", region, "trunk", 15.0, spinous, arch)
        facet = ellipsoid((0.72 * width + 4, y - depth - 10, z + 0.5 * gap), (5, 6, 0.28 * gap))
        parts.pair(f"facet_{name}", region, "trunk", 15.0, facet)
        reach = {"C": 6, "T": 22, "L": 24}[name[0]]
        process = tube(
            [(0.6 * width, y - depth - 8, z), (width + reach, y - depth - 14, z - 0.1 * gap)],
            0.16 * gap,
        )
        parts.pair(f"transverse_{name}", region, "trunk", 9.0, process)


_RIB_HALF_WIDTH = (52, 78, 98, 111, 120, 126, 130, 132, 132, 129, 118, 96)
_RIB_HALF_DEPTH = (46, 62, 74, 82, 87, 90, 92, 92, 91, 88, 84, 80)
_RIB_DROP = (26, 46, 62, 76, 88, 97, 103, 106, 104, 94, 70, 42)
_RIB_END_DEGREES = (148, 150, 150, 149, 147, 145, 143, 132, 120, 105, 78, 52)


def _ribs(parts: _Parts) -> None:
    thoracic = vertebra_centers()[7:19]
    for number in range(12):
        _, spine_y, spine_z = thoracic[number]
        degrees = np.linspace(10, _RIB_END_DEGREES[number], 60)
        angle = np.radians(degrees)
        back = max(spine_y - 30, -92)
        middle = back + _RIB_HALF_DEPTH[number]
        path = np.stack([
            _RIB_HALF_WIDTH[number] * np.sin(angle) ** 0.9 + 4,
            middle - _RIB_HALF_DEPTH[number] * np.cos(angle) + 10 * np.exp(-degrees / 15),
            spine_z - 4 + _RIB_DROP[number] * (degrees / 145) ** 1.1,
        ], axis=1)  # fmt: skip
        shaft = tube(path, 5.6, flat=0.55, wide=(0, 0, 1))
        uptake = float(np.interp(number, [0, 4, 7, 11], [14.6, 14.2, 12.5, 10.5]))
        parts.pair(f"rib_{number + 1}", "ribs", "trunk", uptake, shaft)
        ends = ellipsoid(tuple(path[0]), (6, 6, 6)), ellipsoid(tuple(path[-1]), (4, 4, 6))
        parts.pair(f"rib_end_{number + 1}", "ribs", "trunk", 9.0, *ends)


def _shoulder_girdle(parts: _Parts) -> None:
    manubrium = tube([(0, 56, 312), (0, 62, 326), (0, 71, 360)], [22, 26, 15], flat=0.26)
    parts.add("manubrium", "sternum", "trunk", 21.0, manubrium)
    body = tube(
        [(0, 72, 366), (0, 84, 420), (0, 89, 450), (0, 91, 466)], [12, 17, 15, 6], flat=0.36
    )
    parts.add("sternum_body", "sternum", "trunk", 17.5, body)
    parts.add("sternal_angle", "sternum", "trunk", 18.0, ellipsoid((0, 72, 364), (18, 6, 6)))
    parts.pair("sternoclavicular", "sternum", "trunk", 19.0, ellipsoid((24, 54, 313), (9, 8, 8)))
    clavicle = arc([(28, 54, 312), (60, 56, 304), (105, 34, 288), (140, 6, 274), (158, -6, 270)])
    parts.pair("clavicle", "shoulder", "trunk", 11.0, tube(clavicle, 6, wide=(0, 0, 1)))
    joint = ellipsoid((160, -8, 270), (11, 10, 7))
    parts.pair("acromioclavicular", "shoulder", "trunk", 13.0, joint)
    blade = sheet(
        [(72, -82, 290), (112, -58, 286), (146, -22, 288),
         (76, -98, 352), (112, -86, 348), (132, -54, 344),
         (90, -104, 426), (97, -100, 421), (106, -90, 414)], 4.0,
    )  # fmt: skip
    parts.pair("scapula_blade", "shoulder", "trunk", 9.0, blade)
    borders = (
        tube(arc([(146, -24, 305), (128, -58, 362), (94, -102, 430)]), 4.5, wide=(0, 1, 0)),
        tube(arc([(72, -84, 290), (76, -100, 352), (91, -104, 430)]), 3.0, wide=(0, 1, 0)),
        ellipsoid((93, -103, 424), (8, 4, 10)),
    )
    parts.pair("scapula_border", "shoulder", "trunk", 11.0, *borders)
    ridge = tube(arc([(74, -98, 322), (115, -84, 300), (158, -42, 272), (168, -12, 268)]), 6)
    parts.pair("scapula_spine", "shoulder", "trunk", 10.0, ridge)
    glenoid = ellipsoid((147, -16, 294), (8, 13, 18)), ellipsoid((136, 14, 290), (10, 10, 8))
    parts.pair("glenoid", "shoulder", "trunk", 11.5, *glenoid)


def _arms(parts: _Parts) -> None:
    head = ellipsoid((168, -8, 291), (21, 21, 21)), ellipsoid((181, -4, 300), (11, 14, 16))
    parts.pair("humerus_head", "shoulder", "upper_arm", 9.0, *head)
    shaft = tube([(174, -8, 308), (179, -9, 345), (188, -11, 500), (195, -12, 552)],
                 [18, 11, 10, 16], hollow=0.55)  # fmt: skip
    parts.pair("humerus_shaft", "arm", "upper_arm", 5.5, shaft)
    condyles = tube([(174, -12, 556), (218, -12, 556)], [9, 9], wide=(0, 0, 1))
    parts.pair(
        "elbow", "elbow", "upper_arm", 4.0, condyles, ellipsoid((196, -12, 552), (16, 10, 14))
    )
    forearm = (
        tube([(188, -18, 558), (190, -12, 600), (195, -4, 765)], [11, 7, 6], hollow=0.4),
        tube([(206, -6, 568), (210, -2, 650), (212, 0, 772)], [9, 6, 11], hollow=0.4),
    )
    parts.pair("forearm_shafts", "arm", "forearm", 4.0, *forearm)
    parts.pair("olecranon", "elbow", "forearm", 5.0, ellipsoid((192, -22, 562), (11, 9, 14)))
    wrist = ellipsoid((204, 0, 778), (21, 9, 9)), ellipsoid((204, 0, 795), (20, 8, 11))
    parts.pair("wrist", "hand", "hand", 6.0, *wrist)
    for finger in range(5):
        spread = (finger - 2) / 2
        base = np.array([204 + 13 * spread, 0, 805])
        knuckle = np.array([204 + 26 * spread, 4, 848 - 22 * (finger == 0) - 3 * abs(spread)])
        tip = np.array([204 + 34 * spread, 18, 922 - 52 * (finger == 0) - 12 * abs(spread)])
        middle = knuckle + 0.5 * (tip - knuckle)
        parts.pair(f"metacarpal_{finger + 1}", "hand", "hand", 4.0, tube([base, knuckle], 4.5))
        parts.pair(f"phalanges_{finger + 1}", "hand", "hand", 3.0, tube([knuckle, tip], 4))
        parts.pair(
            f"knuckle_{finger + 1}", "hand", "hand", 5.0, ellipsoid(tuple(knuckle), (6, 6, 6))
        )
        parts.pair(f"finger_{finger + 1}", "hand", "hand", 4.5, ellipsoid(tuple(middle), (5, 5, 5)))


def _pelvis(parts: _Parts) -> None:
    wing = sheet(
        [(40, -76, 700), (112, -28, 654), (126, 60, 712),
         (46, -66, 738), (98, -18, 714), (114, 46, 738),
         (54, -52, 770), (84, -8, 776), (98, 26, 778)], 9.0,
    )  # fmt: skip
    parts.pair("ilium", "pelvis", "trunk", 17.0, wing)
    crest = arc([(40, -76, 700), (74, -58, 672), (108, -28, 656), (130, 18, 672), (126, 60, 712)])
    parts.pair("iliac_crest", "pelvis", "trunk", 9.0, tube(crest, 7.0, wide=(0, 0, 1)))
    joint = tube([(42, -60, 716), (40, -68, 750), (34, -74, 788)], [9, 10, 7])
    parts.pair("sacroiliac", "pelvis", "trunk", 21.0, joint)
    sacrum = tube([(0, -50, 730), (0, -74, 775), (0, -82, 826)], [44, 34, 15], flat=0.32)
    parts.add("sacrum", "pelvis", "trunk", 9.0, sacrum, ellipsoid((0, -88, 765), (9, 8, 36)))
    parts.add("coccyx", "pelvis", "trunk", 3.0, tube([(0, -80, 830), (0, -66, 858)], [10, 4]))
    socket, volume = ellipsoid(HIP, (33, 33, 33), hollow=0.82)
    keep = (socket[:, 0] < 106) & (socket[:, 2] < 815)
    cup = socket[keep], volume * float(keep.mean())
    parts.pair("acetabulum", "pelvis", "trunk", 11.0, cup)
    parts.pair("ischium", "pelvis", "trunk", 9.0, tube([(86, -26, 815), (64, -36, 872)], [14, 16]))
    rami = (
        tube([(78, 22, 808), (40, 42, 822), (12, 46, 840)], [10, 8, 10]),
        tube([(12, 42, 850), (34, 8, 872), (58, -24, 880)], [8, 6, 8]),
    )
    parts.pair("pubis", "pelvis", "trunk", 8.0, *rami)


def _legs(parts: _Parts) -> None:
    head = ellipsoid(HIP, (22, 22, 22)), tube([HIP, (124, -8, 826)], [14, 17])
    parts.pair("femur_head", "hip", "leg", 7.5, *head)
    trochanter = ellipsoid((131, -12, 826), (13, 17, 20)), ellipsoid((112, -18, 856), (10, 10, 14))
    parts.pair("trochanter", "hip", "leg", 6.5, *trochanter)
    shaft = tube([(126, -8, 836), (127, 2, 900), (116, 8, 1000), (94, 4, 1120), (87, 0, 1150)],
                 [19, 15, 14, 15, 24], hollow=0.55)  # fmt: skip
    parts.pair("femur_shaft", "leg", "leg", 6.4, shaft)
    for side, x in (("medial", 63), ("lateral", 105)):
        ends = ellipsoid((x, -4, 1166), (20, 27, 22)), ellipsoid((x, -2, 1204), (20, 23, 13))
        parts.pair(f"knee_{side}", "knee", "leg", 1.75, *ends)
    between = (
        ellipsoid((84, -2, 1152), (30, 22, 24)), ellipsoid((84, 0, 1208), (30, 20, 16)),
        ellipsoid((84, -6, 1186), (32, 20, 14)), ellipsoid((84, 22, 1240), (11, 9, 17)),
    )  # fmt: skip
    parts.pair("knee_center", "knee", "leg", 1.7, *between)
    parts.pair("patella", "knee", "leg", 4.2, ellipsoid((84, 44, 1162), (20, 9, 22)))
    tibia = tube([(84, 0, 1205), (83, 4, 1250), (80, 4, 1390), (77, 2, 1500), (77, 0, 1538)],
                 [25, 15, 12, 13, 18], hollow=0.5)  # fmt: skip
    fibula = tube([(116, -16, 1225), (110, -14, 1260), (100, -12, 1500), (100, -10, 1548)],
                  [9, 5, 5, 9])  # fmt: skip
    parts.pair("tibia_shaft", "leg", "leg", 5.6, tibia)
    parts.pair("fibula", "leg", "leg", 4.6, fibula)
    ankle = ellipsoid((78, 0, 1536), (21, 18, 10)), ellipsoid((78, 4, 1558), (19, 22, 13))
    parts.pair("ankle", "foot", "leg", 3.8, *ankle)
    parts.pair("calcaneus", "foot", "leg", 3.6, ellipsoid((79, -24, 1582), (17, 28, 24)))
    midfoot = ellipsoid((78, 30, 1588), (18, 17, 20)), ellipsoid((75, 40, 1610), (17, 13, 14))
    parts.pair("midfoot", "foot", "leg", 4.2, *midfoot)
    for toe in range(5):
        base, spread = 64 + 7.5 * toe, 9.5 * toe
        head_of = np.array([60 + spread, 60 - 4 * toe, 1658 - 6 * toe])
        tip = head_of + np.array([1.5 * toe - 2, 12, 30 - 3 * toe])
        bones = tube([(base, 42, 1616), head_of], 4.5), tube([head_of, tip], 4)
        parts.pair(f"metatarsal_{toe + 1}", "foot", "leg", 4.4, *bones)
        size = 8 if toe == 0 else 5.5
        parts.pair(
            f"toe_{toe + 1}", "foot", "leg", 5.0, ellipsoid(tuple(head_of), (size, size, size))
        )


_GROWTH_PLATES = (
    ("humerus", "upper_arm", ((170, -8, 312), (21, 19, 3))),
    ("radius", "forearm", ((210, 0, 766), (12, 9, 2.5))),
    ("femur", "leg", ((84, -2, 1136), (38, 24, 3))),
    ("tibia_upper", "leg", ((84, -2, 1222), (36, 22, 3))),
    ("tibia_lower", "leg", ((80, 0, 1524), (20, 17, 2.5))),
    ("trochanter", "leg", ((122, -10, 812), (13, 14, 3))),
)
"""Name, segment, centre and radii of the discs of cartilage where long bones grow."""


def _growth_plates(parts: _Parts) -> None:
    for name, segment, (center, radii) in _GROWTH_PLATES:
        parts.pair(f"growth_plate_{name}", "growth", segment, 18.0, ellipsoid(center, radii))


def _organs(parts: _Parts) -> None:
    kidney = ellipsoid((62, -48, 590), (26, 19, 50), hollow=0.55)
    parts.pair("kidney", "kidney", "trunk", 13.0, kidney)
    parts.pair("renal_pelvis", "renal_pelvis", "trunk", 6.0, ellipsoid((48, -42, 592), (9, 9, 17)))
    ureter = tube([(44, -38, 612), (38, -34, 680), (32, -20, 760), (18, 10, 810)], 3)
    parts.pair("ureter", "ureter", "trunk", 4.0, ureter)
    parts.add("bladder", "bladder", "trunk", 24.0, ellipsoid((0, 34, 806), (30, 24, 20)))
    parts.add("heart", "blood", "trunk", 0.75, ellipsoid((28, 28, 436), (48, 40, 52)))
    liver = ellipsoid((-62, 10, 536), (68, 72, 52)), ellipsoid((8, 52, 528), (44, 30, 30))
    parts.add("liver", "blood", "trunk", 0.6, *liver)
    parts.add("stomach", "stomach", "trunk", 1.0, ellipsoid((50, 34, 545), (38, 32, 48)))
    parts.pair("thyroid_lobe", "thyroid", "trunk", 1.0, ellipsoid((19, 16, 278), (9, 9, 22)))
    parts.add("thyroid_isthmus", "thyroid", "trunk", 1.0, ellipsoid((0, 26, 284), (12, 5, 8)))
    cartilage = tube([(-17, 12, 248), (0, 32, 244), (17, 12, 248)], 8, flat=0.4, wide=(0, 0, 1))
    parts.add("thyroid_cartilage", "cartilage", "trunk", 4.0, cartilage)
    nodes = tube([(38, -4, 232), (34, 6, 268), (36, 16, 302)], 8)
    parts.pair("neck_nodes", "nodes", "trunk", 0.01, nodes)
    glands = ellipsoid((54, 2, 176), (9, 12, 19)), ellipsoid((30, 40, 212), (9, 12, 8))
    parts.pair("salivary", "salivary", "head", 1.0, *glands)
    parts.add("perineum", "skin", "trunk", 0.01, ellipsoid((0, 45, 905), (35, 15, 25)))
