"""Divides patients into train, validation and test, and proves that none is in two.

In: pseudonyms with their labels, splits that are already given or known, fractions and a seed.
Out: one split a patient, the same for the same input; kept in splits.csv for the next build.
"""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from tfds_builder.errors import DataError
from tfds_builder.manifest import LABELS, SPLITS

FILE_NAME = "splits.csv"
FRACTIONS = (0.7, 0.15, 0.15)

_FIELDS = ("patient_key", "label", "split")
# A patient with several labels is counted under the most serious one.
_BY_SEVERITY = ("metastasis", "thyroid_carcinoma", "arthritis", "normal")


@dataclass(frozen=True)
class Membership:
    """Where one image stands: what the proof of disjointness is made of."""

    image_id: str
    study_key: str
    patient_key: str
    label: str
    split: str


def patient_label(labels: Iterable[str]) -> str:
    """The label under which a patient is stratified: the most serious of their images' labels."""
    return min(labels, key=_BY_SEVERITY.index)


def assign_splits(
    labels: Mapping[str, str],
    fixed: Mapping[str, str] | None = None,
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
) -> dict[str, str]:
    """Gives every patient a split, class by class.

    Within a class, patients without a fixed split are ordered by a hash of (seed, pseudonym) and
    fill what test, validation and train lack of their share. A class of three or more patients has
    at least one in every split whose fraction is not zero.

    Args:
      labels: pseudonym -> label of every patient.
      fixed: pseudonym -> split of patients whose split is given or known.
      fractions: shares of train, validation and test; they add up to 1.
      seed: another seed, another division.

    Returns:
      pseudonym -> split for every patient in `labels`. The order of `labels` plays no part.
    """
    fixed = fixed or {}
    splits = {patient: fixed[patient] for patient in labels if patient in fixed}
    for label in LABELS:
        members = [patient for patient, own in labels.items() if own == label]
        free = sorted((p for p in members if p not in fixed), key=lambda p: _order(seed, p))
        have = Counter(splits[patient] for patient in members if patient in fixed)
        lacking = _shares(len(members), fractions)
        for patient in free:
            split = next((s for s in reversed(SPLITS) if have[s] < lacking[s]), SPLITS[0])
            splits[patient] = split
            have[split] += 1
    return splits


def _order(seed: int, patient: str) -> str:
    return hashlib.sha256(f"{seed} {patient}".encode()).hexdigest()


def _shares(count: int, fractions: tuple[float, float, float]) -> dict[str, int]:
    """Whole numbers of patients for each split: largest remainders, none empty where avoidable."""
    exact = [count * fraction for fraction in fractions]
    shares = [int(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(SPLITS)), key=lambda n: (shares[n] - exact[n], n))
    for n in by_remainder[: count - sum(shares)]:
        shares[n] += 1
    if count >= len(SPLITS):
        for n, fraction in enumerate(fractions):
            if fraction > 0 and shares[n] == 0:
                shares[n] += 1
                shares[shares.index(max(shares))] -= 1
    return dict(zip(SPLITS, shares, strict=True))


def read_splits(path: Path) -> dict[str, tuple[str, str]]:
    """Reads splits.csv: pseudonym -> (label, split); empty where there is no file.

    Raises:
      DataError: the file is not one that `splits_text` made.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{path}: cannot be read; restore it or remove it") from None
    table = list(csv.reader(io.StringIO(text)))
    if not table or tuple(table[0]) != _FIELDS:
        raise DataError(f"{path}: row 1 must be {','.join(_FIELDS)}; restore the file or remove it")
    known: dict[str, tuple[str, str]] = {}
    for number, row in enumerate(table[1:], start=2):
        if len(row) != len(_FIELDS) or row[1] not in LABELS or row[2] not in SPLITS:
            raise DataError(f"{path}: row {number}: not patient_key,label,split; restore the file")
        if row[0] in known:
            raise DataError(f"{path}: row {number}: patient {row[0]} occurs twice; keep one row")
        known[row[0]] = (row[1], row[2])
    return known


def splits_text(known: Mapping[str, tuple[str, str]]) -> str:
    """The content of splits.csv: pseudonyms, labels and splits, sorted."""
    lines = [",".join((patient, *known[patient])) for patient in sorted(known)]
    return "\n".join([",".join(_FIELDS), *lines]) + "\n"


def prove_disjoint(members: Iterable[Membership]) -> dict[str, object]:
    """Counts what each split holds and shows that splits share no patient, study or image.

    Returns:
      A JSON object: `splits` (for each split its patients, studies, images, and `images_by_class`
      and `patients_by_class`) and `intersections` (for each pair 'a & b' the number of shared
      patients, studies and images: all 0).

    Raises:
      DataError: two splits share a patient, study or image, or an image occurs twice.
    """
    members = list(members)
    twice = [image for image, n in Counter(m.image_id for m in members).items() if n > 1]
    if twice:
        raise DataError(f"image {twice[0]} occurs twice; every image may be there only once")
    by_split = {split: [m for m in members if m.split == split] for split in SPLITS}
    keys = {
        split: {
            "patients": {m.patient_key for m in own},
            "studies": {m.study_key for m in own},
            "images": {m.image_id for m in own},
        }
        for split, own in by_split.items()
    }
    intersections = {}
    for a, b in combinations(SPLITS, 2):
        shared = {kind: keys[a][kind] & keys[b][kind] for kind in keys[a]}
        for kind, both in shared.items():
            if both:
                raise DataError(f"splits {a} and {b} share {len(both)} {kind}: {min(both)}")
        intersections[f"{a} & {b}"] = {kind: len(both) for kind, both in shared.items()}
    return {
        "splits": {
            split: {kind: len(found) for kind, found in keys[split].items()}
            | {
                "images_by_class": _by_class((m.image_id, m.label) for m in own),
                "patients_by_class": _by_class({(m.patient_key, m.label) for m in own}),
            }
            for split, own in by_split.items()
        },
        "intersections": intersections,
    }


def _by_class(pairs: Iterable[tuple[str, str]]) -> dict[str, int]:
    counts = Counter(label for _, label in pairs)
    return {label: counts[label] for label in LABELS}
