"""Command line: python -m tests.phantom_checks.oracle --cohort DIR [--limit 0.97].

Reads each study as a reader would who misses no visible lesion: by rule, from sites and symmetry
alone. In: manifest.csv and lesions.csv of a cohort. Out, as text: how often the rule finds the
label, which is what the images can be expected to tell, and where the lesions are.
"""

import argparse
import csv
import dataclasses
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tfds_builder.commandline.command import CommandParser
from tfds_builder.commandline.errors import UserError, run_command
from tfds_builder.phantom.disease.disease import LABELS
from tfds_builder.phantom.disease.lesions import JOINTS, REGIONS

NECK_SITES = ("thyroid_lobe", "thyroid_isthmus", "neck_nodes")
SIDES = ("left", "right")

_JOINT_OF = {site: name for name, joint in JOINTS.items() for site in joint.structures}
_REGION_OF = {site: name for name, region in REGIONS.items() for site in region.structures}
_MANIFEST_COLUMNS = ("path", "label")
_LESION_COLUMNS = (
    "path", "kind", "site", "side", "cold", "volume_ml",
    "contrast_anterior", "contrast_posterior", "visible_anterior", "visible_posterior",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Lesion:
    """A row of lesions.csv: `contrast` and `visible` are of the anterior and posterior view."""

    kind: str
    site: str
    side: str
    cold: bool
    volume_ml: float
    contrast: tuple[float, float]
    visible: tuple[bool, bool]


@dataclasses.dataclass(frozen=True)
class Study:
    """A row of manifest.csv and its lesions."""

    label: str
    lesions: tuple[Lesion, ...]

    @property
    def seen(self) -> tuple[Lesion, ...]:
        """The lesions that are visible in at least one view."""
        return tuple(lesion for lesion in self.lesions if any(lesion.visible))


def read_by_rule(places: Iterable[tuple[str, str]]) -> str:
    """The class that (site, side) of the visible lesions speak for.

    Uptake in the thyroid bed or in cervical nodes is thyroid carcinoma; else, uptake away from
    joints is metastasis; so is uptake of one bone end where metastases grow, unless the bone it
    meets or the joint of the other side takes up as well; else, uptake is arthritis.
    """
    places = set(places)
    if not places:
        return "normal"
    if any(site in NECK_SITES for site, _ in places):
        return "thyroid_carcinoma"
    if any(site not in _JOINT_OF or _is_alone(site, side, places) for site, side in places):
        return "metastasis"
    return "arthritis"


def _is_alone(site: str, side: str, places: set[tuple[str, str]]) -> bool:
    if site not in _REGION_OF:
        return False
    parts = [(part, s) for part in JOINTS[_JOINT_OF[site]].structures for s in SIDES]
    return places.isdisjoint(set(parts) - {(site, side)})


def read_cohort(folder: Path) -> list[Study]:
    """The studies of a cohort, in the order of its manifest.

    Raises UserError where a table is missing, lacks a column, or holds what it should not.
    """
    manifest = _table(folder / "manifest.csv", _MANIFEST_COLUMNS)
    found: dict[str, list[Lesion]] = {}
    for number, row in enumerate(manifest, 2):
        if row["label"] not in LABELS:
            raise UserError(f"manifest.csv row {number}: label must be one of {', '.join(LABELS)}")
        found[row["path"]] = []
    for number, row in enumerate(_table(folder / "lesions.csv", _LESION_COLUMNS), 2):
        if row["path"] not in found:
            raise UserError(f"lesions.csv row {number}: path is not in manifest.csv")
        found[row["path"]].append(_lesion(row, number))
    return [Study(row["label"], tuple(found[row["path"]])) for row in manifest]


def _table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            reader = csv.DictReader(lines, restval="")
            names, rows = reader.fieldnames or (), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: {reason}; --cohort is a folder made by phantom") from error
    missing = [name for name in columns if name not in names]
    if missing:
        raise UserError(f"{path}: no column {missing[0]}; make the cohort anew")
    return rows


def _lesion(row: dict[str, str], number: int) -> Lesion:
    try:
        return Lesion(
            row["kind"], row["site"], row["side"], _truth(row["cold"]), float(row["volume_ml"]),
            (float(row["contrast_anterior"]), float(row["contrast_posterior"])),
            (_truth(row["visible_anterior"]), _truth(row["visible_posterior"])),
        )  # fmt: skip
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"lesions.csv row {number}: {error}; make the cohort anew") from None


def _truth(text: str) -> bool:
    return {"true": True, "false": False}[text]


def confusion(studies: Sequence[Study]) -> np.ndarray:
    """Studies by label (rows) and by what the rule reads (columns), shape (4, 4), as LABELS."""
    table = np.zeros((len(LABELS), len(LABELS)), int)
    for study in studies:
        read = read_by_rule((lesion.site, lesion.side) for lesion in study.seen)
        table[LABELS.index(study.label), LABELS.index(read)] += 1
    return table


def report(studies: Sequence[Study]) -> tuple[float, str]:
    """The accuracy of the rule, and the text that tells it and describes the lesions."""
    table = confusion(studies)
    accuracy = float(np.trace(table) / max(table.sum(), 1))
    lines = [
        f"rule on the sites of visible lesions: accuracy {accuracy:.4f} on {len(studies)} studies",
        "", f"{'label':<18}" + "".join(f"{name:>18}" for name in LABELS) + "  no visible lesion",
    ]  # fmt: skip
    for label, row in zip(LABELS, table, strict=True):
        unseen = [not study.seen for study in studies if study.label == label]
        share = f"{np.mean(unseen):19.3f}" if unseen else f"{'-':>19}"
        lines.append(f"{label:<18}" + "".join(f"{count:18d}" for count in row) + share)
    return accuracy, "\n".join([*lines, "", *_site_lines(studies)])


def _site_lines(studies: Sequence[Study]) -> list[str]:
    """Where the lesions are: share, contrast in the better view, volume, share of visible ones."""
    groups: dict[str, list[Lesion]] = {name: [] for name in (*REGIONS, *JOINTS, "thyroid", "node")}
    for lesion in (lesion for study in studies for lesion in study.lesions):
        known = {"metastasis": _REGION_OF, "arthritis": _JOINT_OF}.get(lesion.kind, {})
        groups.setdefault(known.get(lesion.site, lesion.kind), []).append(lesion)
    bone = sum(len(groups[name]) for name in REGIONS)
    own = [s for s in studies if s.label == "metastasis"]
    number = [sum(lesion.kind == "metastasis" for lesion in study.lesions) for study in own]
    lines = []
    if own:
        lines.append(f"metastases: {np.mean(number):.1f} a study, from {min(number)} to "
                     f"{max(number)}; share of all, of cold ones, medians")  # fmt: skip
    lines.append(f"{'site':<18}{'lesions':>8}{'share':>8}{'cold':>8}{'contrast':>10}"
                 f"{'5 to 95 %':>16}{'ml':>8}{'visible':>9}")  # fmt: skip
    for name, lesions in groups.items():
        hot = [max(lesion.contrast) for lesion in lesions if not lesion.cold]
        if not hot:
            continue
        low, middle, high = np.percentile(hot, (5, 50, 95))
        share = f"{len(lesions) / bone:8.3f}" if name in REGIONS else f"{'':8}"
        lines.append(
            f"{name:<18}{len(lesions):8d}{share}{1 - len(hot) / len(lesions):8.3f}{middle:10.2f}"
            f"{f'{low:.2f} to {high:.2f}':>16}{np.median([f.volume_ml for f in lesions]):8.1f}"
            f"{np.mean([any(f.visible) for f in lesions]):9.3f}"
        )
    for label in ("metastasis", "thyroid_carcinoma"):
        both = [any(f.kind == "arthritis" for f in s.lesions) for s in studies if s.label == label]
        if both:
            lines.append(f"arthritis as well: {np.mean(both):.3f} of {label}")
    return lines


def main() -> None:
    """Parses the command line and prints the report; exits with 1 below the limit."""
    parser = CommandParser(
        prog="python -m tests.phantom_checks.oracle",
        description="Reads a phantom cohort by rule, from the sites of its visible lesions alone.",
    )
    add = parser.add_argument
    add("--cohort", type=Path, required=True, metavar="DIR",
        help="folder with manifest.csv and lesions.csv")  # fmt: skip
    add("--limit", type=_share, metavar="A",
        help="exit with status 1 where the accuracy is lower than this share")  # fmt: skip
    arguments = parser.parse_args()
    accuracy, text = report(read_cohort(arguments.cohort))
    print(text)
    if arguments.limit is not None and accuracy < arguments.limit:
        print(f"accuracy {accuracy:.4f} is below {arguments.limit:g}", file=sys.stderr)
        sys.exit(1)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share from 0 to 1")
    return value


if __name__ == "__main__":
    run_command(main)
