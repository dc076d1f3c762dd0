"""The proof that no patient, study or image is in two splits."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import combinations
from typing import Any

from tfds_builder.commandline.errors import UserError
from tfds_builder.studies.study import Facts

_NO_SITE = "unknown"


def prove_disjoint(
    by_split: Mapping[str, Collection[Facts]], classes: tuple[str, ...]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Counts what each split holds and shows that splits share no patient, study or image.

    Args:
      by_split: the images of every split.
      classes: the names that their labels may be.

    Returns:
      splits: split -> its patients, studies, images, images_by_class and patients_by_class, and
        patients_by_site where sites are known.
      intersections: for each pair 'a & b' how many patients, studies and images they share: none.

    Raises:
      UserError: two splits share a patient, study or image, or an image occurs twice.
    """
    images = [image for own in by_split.values() for image in own]
    twice = [name for name, n in Counter(one.image_id for one in images).items() if n > 1]
    if twice:
        raise UserError(f"image {twice[0]} occurs twice; every image may be there only once")
    sites = sorted({image.site_key or _NO_SITE for image in images})
    held = {split: _identifiers(own) for split, own in by_split.items()}
    return {
        "splits": {
            split: {kind: len(names) for kind, names in held[split].items()}
            | _counted(own, classes, sites)
            for split, own in by_split.items()
        },
        "intersections": _intersections(held),
    }


def _identifiers(images: Collection[Facts]) -> dict[str, set[str]]:
    return {
        "patients": {image.patient_key for image in images},
        "studies": {image.study_key for image in images},
        "images": {image.image_id for image in images},
    }


def _intersections(held: Mapping[str, dict[str, set[str]]]) -> dict[str, dict[str, int]]:
    intersections = {}
    for a, b in combinations(held, 2):
        shared = {kind: names & held[b][kind] for kind, names in held[a].items()}
        for kind, both in shared.items():
            if both:
                raise UserError(f"splits {a} and {b} share {len(both)} {kind}: {min(both)}")
        intersections[f"{a} & {b}"] = {kind: len(both) for kind, both in shared.items()}
    return intersections


def _counted(
    images: Collection[Facts], classes: tuple[str, ...], sites: list[str]
) -> dict[str, dict[str, int]]:
    patients = {(image.patient_key, image.label) for image in images}
    counted = {
        "images_by_class": _counts((image.label for image in images), classes),
        "patients_by_class": _counts((label for _, label in patients), classes),
    }
    if sites != [_NO_SITE]:
        at_sites = {(image.patient_key, image.site_key or _NO_SITE) for image in images}
        counted["patients_by_site"] = _counts((site for _, site in at_sites), sites)
    return counted


def _counts(values: Iterable[str], names: Iterable[str]) -> dict[str, int]:
    counts = Counter(values)
    return {name: counts[name] for name in names}
