"""The proof that no patient, study or image is in two splits."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import NotRequired, TypedDict

from tfds_builder.commandline.errors import UserError
from tfds_builder.manifest import SPLITS

_NO_SITE = "unknown"


@dataclass(frozen=True)
class Membership:
    """Where one image stands: what the proof of disjointness is made of."""

    image_id: str
    study_key: str
    patient_key: str
    label: str
    split: str
    site: str = ""


class Holdings(TypedDict):
    """What a split holds; `patients_by_site` is there where sites are known."""

    patients: int
    studies: int
    images: int
    images_by_class: dict[str, int]
    patients_by_class: dict[str, int]
    patients_by_site: NotRequired[dict[str, int]]


class Proof(TypedDict):
    """What each split holds, and for each pair 'a & b' how much they share: nothing."""

    splits: dict[str, Holdings]
    intersections: dict[str, dict[str, int]]


def prove_disjoint(
    members: Iterable[Membership],
    classes: tuple[str, ...],
    names: tuple[str, ...] = SPLITS,
) -> Proof:
    """Counts what each split holds and shows that splits share no patient, study or image.

    Args:
      members: all images.
      classes: the names that their labels may be.
      names: of all splits, as `split_names` returns them.

    Raises:
      UserError: two splits share a patient, study or image, or an image occurs twice.
    """
    members = list(members)
    twice = [image for image, n in Counter(m.image_id for m in members).items() if n > 1]
    if twice:
        raise UserError(f"image {twice[0]} occurs twice; every image may be there only once")
    by_split: dict[str, list[Membership]] = {split: [] for split in names}
    for member in members:
        by_split[member.split].append(member)
    sites = sorted({m.site or _NO_SITE for m in members})
    return {
        "splits": {split: _holdings(own, classes, sites) for split, own in by_split.items()},
        "intersections": _intersections(by_split),
    }


def _identifiers(members: list[Membership]) -> dict[str, set[str]]:
    return {
        "patients": {m.patient_key for m in members},
        "studies": {m.study_key for m in members},
        "images": {m.image_id for m in members},
    }


def _intersections(by_split: dict[str, list[Membership]]) -> dict[str, dict[str, int]]:
    identifiers = {split: _identifiers(own) for split, own in by_split.items()}
    intersections = {}
    for a, b in combinations(by_split, 2):
        shared = {kind: identifiers[a][kind] & identifiers[b][kind] for kind in identifiers[a]}
        for kind, both in shared.items():
            if both:
                raise UserError(f"splits {a} and {b} share {len(both)} {kind}: {min(both)}")
        intersections[f"{a} & {b}"] = {kind: len(both) for kind, both in shared.items()}
    return intersections


def _holdings(members: list[Membership], classes: tuple[str, ...], sites: list[str]) -> Holdings:
    held = _identifiers(members)
    holdings: Holdings = {
        "patients": len(held["patients"]),
        "studies": len(held["studies"]),
        "images": len(held["images"]),
        "images_by_class": _counts((m.label for m in members), classes),
        "patients_by_class": _counts(
            (label for _, label in {(m.patient_key, m.label) for m in members}), classes
        ),
    }
    if sites != [_NO_SITE]:
        patients = {(m.patient_key, m.site or _NO_SITE) for m in members}
        holdings["patients_by_site"] = _counts((site for _, site in patients), sites)
    return holdings


def _counts(values: Iterable[str], names: Iterable[str]) -> dict[str, int]:
    counts = Counter(values)
    return {name: counts[name] for name in names}
