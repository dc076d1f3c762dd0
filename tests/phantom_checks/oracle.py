"""Command line: python -m tests.phantom_checks.oracle --cohort DIR [--limit 0.97].

Reads each study as a reader would who misses no visible lesion: by rule, from sites and symmetry
alone. In: manifest.csv and lesions.csv of a cohort. Out, as text: how often the rule finds the
label, which is what the images can be expected to tell, and where the lesions are.
"""

import csv
import dataclasses
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tfds_builder.commandline.command import CommandParser
from tfds_builder.commandline.errors import run_command
from tfds_builder.phantom import LABELS
from tfds_builder.phantom.disease.foci import LesionRecord
from tfds_builder.phantom.disease.lesions import JOINTS, REGIONS

NECK_SITES = ("thyroid_lobe", "thyroid_isthmus", "neck_nodes")
SIDES = ("left", "right")

_JOINT_OF = {site: name for name, joint in JOINTS.items() for site in joint.structures}
_REGION_OF = {site: name for name, region in REGIONS.items() for site in region.structures}


@dataclasses.dataclass(frozen=True)
class Study:
    """A row of manifest.csv and its lesions."""

    label: str
    lesions: tuple[LesionRecord, ...]

    @property
    def seen(self) -> tuple[LesionRecord, ...]:
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
    """The studies of a cohort, in the order of its manifest."""
    lesions: dict[str, list[LesionRecord]] = {}
    for row in _table(folder / "lesions.csv"):
        lesions.setdefault(row["path"], []).append(_lesion(row))
    return [
        Study(row["label"], tuple(lesions.get(row["path"], ())))
        for row in _table(folder / "manifest.csv")
    ]


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def _lesion(row: dict[str, str]) -> LesionRecord:
    def pair(name: str) -> tuple[str, str]:
        return row[f"{name}_anterior"], row[f"{name}_posterior"]

    return LesionRecord(
        int(row["number"]), row["kind"], row["site"], row["side"],
        row["cold"] == "true", float(row["volume_ml"]),
        contrast=tuple(map(float, pair("contrast"))),
        snr=tuple(map(float, pair("snr"))),
        visible=tuple(value == "true" for value in pair("visible")),
    )  # fmt: skip


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
    groups: dict[str, list[LesionRecord]] = {
        name: [] for name in (*REGIONS, *JOINTS, "thyroid", "node")
    }
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
    add("--limit", type=float, metavar="A",
        help="exit with status 1 where the accuracy is lower than this share")  # fmt: skip
    arguments = parser.parse_args()
    accuracy, text = report(read_cohort(arguments.cohort))
    print(text)
    if arguments.limit is not None and accuracy < arguments.limit:
        print(f"accuracy {accuracy:.4f} is below {arguments.limit:g}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
