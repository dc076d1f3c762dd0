"""Where the images come from: what the folder of a data set tells of its making.

In: the folder that `tfds_builder.build` filled, and the metadata that lie in it. Out: numbers, each
None where the folder does not tell it.
"""

import csv
import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dscint_jax.report.tables import Table, plain
from tfds_builder.commandline.errors import UserError

NOT_REPORTED = "not reported"

MOST_REASONS = 6
"""How many reasons are told one by one."""

COHORT = {
    "sexes": "images by sex",
    "age_bands": "images by age",
    "manufacturers": "images by maker",
    "pixel_spacings_mm": "images by pixel spacing, mm",
    "view_rules": "what told the views apart",
    "notes": "what was assumed or changed",
}
"""Counts among the metadata of a data set that say whom it is of."""


@dataclasses.dataclass(frozen=True)
class DataFlow:
    """What became of what was offered to a data set.

    Attributes:
      rows: of the manifest.
      refused: rows that could not be used, by reason.
      left_out: images that were read and not taken, such as those without an opposite view.
      findings: images that need a look, by finding; they were taken.
      splits: what each split holds: patients, studies, images, images_by_class.
      shared: for each pair 'a & b' of splits, what they share.
      cohort: the counts that COHORT names.
    """

    rows: int | None
    refused: dict[str, int] | None
    left_out: int | None
    findings: dict[str, int] | None
    splits: dict[str, dict[str, Any]]
    shared: dict[str, dict[str, int]] | None
    cohort: dict[str, dict[str, int]]

    def total(self, kind: str) -> int | None:
        """'patients', 'studies' or 'images' of all splits; no two share any."""
        if not all(kind in held for held in self.splits.values()):
            return None
        return sum(held[kind] for held in self.splits.values())


def read_data_flow(folder: Path, metadata: Mapping[str, Any]) -> DataFlow:
    """Reads what a data set's folder tells.

    Args:
      folder: of the data set's version, with quality.csv and quarantine.csv.
      metadata: of the same, as TFDS has them.

    Raises:
      UserError: a file is there and cannot be read.
    """
    quality, quarantine = _rows(folder / "quality.csv"), _rows(folder / "quarantine.csv")
    rows = None
    if quality is not None and quarantine is not None:
        rows = len({row["row"] for row in (*quality, *quarantine)})
    proof = metadata.get("split_proof") or {}
    splits = proof.get("splits") or {
        name: {"images": sum(counts.values()), "images_by_class": counts}
        for name, counts in metadata["class_counts"].items()
    }
    return DataFlow(
        rows=rows,
        refused=None if quarantine is None else _counted(row["reason"] for row in quarantine),
        left_out=metadata.get("images_left_out"),
        findings=None
        if quality is None
        else _counted(one for row in quality for one in row["findings"].split("; ") if one),
        splits=splits,
        shared=proof.get("intersections"),
        cohort={name: metadata[name] for name in COHORT if metadata.get(name)},
    )


def _rows(path: Path) -> list[dict[str, str]] | None:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}; build with --overwrite") from None


def _counted(reasons: Iterable[str]) -> dict[str, int]:
    """The most frequent reasons, and all others together."""
    counts = Counter(reasons).most_common()
    found = dict(counts[:MOST_REASONS])
    if counts[MOST_REASONS:]:
        found["other reasons"] = sum(count for _, count in counts[MOST_REASONS:])
    return found


def split_table(flow: DataFlow) -> Table:
    """What each split holds, and what any two share."""
    classes = list(
        dict.fromkeys(c for held in flow.splits.values() for c in held["images_by_class"])
    )
    rows = [
        (
            name,
            *(str(held.get(kind, NOT_REPORTED)) for kind in ("patients", "studies", "images")),
            *(str(held["images_by_class"].get(label, 0)) for label in classes),
        )
        for name, held in flow.splits.items()
    ]
    rows += [
        (
            f"in both {pair.replace('&', 'and')}",
            *(str(shared[kind]) for kind in ("patients", "studies", "images")),
            *[""] * len(classes),
        )
        for pair, shared in (flow.shared or {}).items()
    ]
    head = ("split", "patients", "studies", "images", *map(plain, classes))
    note = "" if flow.shared else "What the splits share is not reported."
    return Table("splits", "What each split holds, and what any two share", head, tuple(rows), note)


def cohort_table(flow: DataFlow) -> Table:
    """Whom the data set is of."""
    rows = tuple(
        (title, ", ".join(f"{name}: {n}" for name, n in flow.cohort[key].items()))
        if key in flow.cohort
        else (title, NOT_REPORTED)
        for key, title in COHORT.items()
    )
    return Table("cohort", "Whom the whole data set is of", ("what", "numbers"), rows)
