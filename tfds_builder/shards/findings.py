"""What a build found, as files beside the records: quality.csv, quarantine.csv, split_proof.json.

Rows are named by their number in the manifest, which stays at the site; no path and no identifier
of a patient is written.
"""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfds_builder.commandline.errors import UserError, reason
from tfds_builder.commandline.files import write_text
from tfds_builder.manifest import SPLITS, VIEWS
from tfds_builder.shards.ingest import CROWDED, TWO_LABELS, Duplicate, Ingested
from tfds_builder.shards.plan import Plan
from tfds_builder.studies.study import CROPPED, Facts
from tfds_builder.tables import csv_text

QUALITY, QUARANTINE, SPLIT_PROOF = "quality.csv", "quarantine.csv", "split_proof.json"


def write_findings(ingested: Ingested, folder: Path) -> None:
    """Writes all three files."""
    _write_lists(ingested, folder)
    write_text(folder / SPLIT_PROOF, json.dumps(ingested.proof, indent=2) + "\n")


def refuse_unacceptable(ingested: Ingested, data_dir: Path) -> None:
    """Ends a build in which too much is wrong, and leaves the reasons in the data directory.

    Raises:
      UserError: more rows than allowed cannot be used, or none can; under `strict`, any finding.
    """
    rejected, plan = ingested.rejected, ingested.plan
    if _too_many(len(rejected), plan):
        _write_quarantine(ingested, data_dir)
        raise _rejected_error(rejected, plan, data_dir)
    if not ingested.images:
        raise _nothing_left_error(ingested)
    empty = [split for split, own in ingested.shards.items() if not own]
    if empty and set(ingested.shards) != set(SPLITS):
        raise UserError(f"{empty[0]} holds no image: use fewer --folds")
    found = [row for row in _quality_rows(ingested) if row["findings"]]
    if plan.options.strict and (found or rejected):
        _write_lists(ingested, data_dir)
        raise _strict_error(found, len(rejected), data_dir)


def refuse_stored(folder: Path, plan: Plan) -> None:
    """Holds a data set that is already there to `refuse_unacceptable`'s limits of this build."""
    rejected = [(row["row"], row["reason"]) for row in _stored(folder / QUARANTINE, "reason")]
    found = [row for row in _stored(folder / QUALITY, "findings") if row["findings"]]
    if _too_many(len(rejected), plan):
        raise _rejected_error(rejected, plan, folder)
    if plan.options.strict and (found or rejected):
        raise _strict_error(found, len(rejected), folder)


def _nothing_left_error(ingested: Ingested) -> UserError:
    unknown = sum(facts.view not in VIEWS for facts in ingested.left_out)
    alone = len(ingested.left_out) - unknown
    causes = [f"{unknown} are of unknown view; fill in view"] if unknown else []
    if alone:
        causes.append(f"{alone} have no opposite view; --one_view_studies keep takes them in")
    return UserError(
        f"no image is left for --config {ingested.plan.options.config}: {', '.join(causes)}"
    )


def _too_many(rejected: int, plan: Plan) -> bool:
    rows = len(plan.rows)
    return rejected > 0 and (rejected > plan.options.max_rejected * rows + 1e-9 or rejected == rows)


def _rejected_error(
    rejected: Sequence[tuple[int | str, str]], plan: Plan, folder: Path
) -> UserError:
    rows, (number, why) = len(plan.rows), rejected[0]
    share = math.ceil(1000 * len(rejected) / rows) / 10
    return UserError(
        f"{len(rejected)} of {rows} rows cannot be used ({share} %, --max_rejected is "
        f"{100 * plan.options.max_rejected:g} %); manifest row {number}: {why}; "
        f"{folder / QUARANTINE} lists all"
    )


def _strict_error(found: Sequence[Mapping[str, Any]], rejected: int, folder: Path) -> UserError:
    first = f"manifest row {found[0]['row']}: {found[0]['findings']}; " if found else ""
    return UserError(
        f"--strict: {len(found)} images with findings and {rejected} unusable rows; {first}"
        f"{folder / (QUALITY if found else QUARANTINE)} lists all"
    )


def _stored(path: Path, column: str) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            names, rows = {*(reader.fieldnames or ())}, list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path}: cannot be read ({reason(error)}); build with --overwrite"
        ) from None
    if not {"row", column} <= names:
        raise UserError(f"{path}: was changed since it was written; build with --overwrite")
    return rows


def remove_stale(data_dir: Path) -> None:
    """Removes the reasons for which an earlier build failed."""
    for name in (QUALITY, QUARANTINE):
        (data_dir / name).unlink(missing_ok=True)


def _write_lists(ingested: Ingested, folder: Path) -> None:
    """quality.csv: a line for every image that was read (one at least), by row and frame."""
    rows = list(_quality_rows(ingested))
    write_text(folder / QUALITY, csv_text(list(rows[0]), (list(row.values()) for row in rows)))
    _write_quarantine(ingested, folder)


def _write_quarantine(ingested: Ingested, folder: Path) -> None:
    write_text(folder / QUARANTINE, csv_text(("row", "reason"), ingested.rejected))


def _quality_rows(ingested: Ingested) -> Iterator[dict[str, Any]]:
    of: dict[str, list[tuple[Facts, Duplicate]]] = {}
    for pair in ingested.duplicates.pairs:
        of.setdefault(pair.first.image_id, []).append((pair.second, pair))
        of.setdefault(pair.second.image_id, []).append((pair.first, pair))
    images = [*ingested.images, *ingested.left_out]
    for facts in sorted(images, key=lambda facts: (facts.row, facts.frame)):
        yield _quality_row(ingested, facts, of.get(facts.image_id, []))


def _quality_row(
    ingested: Ingested, facts: Facts, copies: list[tuple[Facts, Duplicate]]
) -> dict[str, Any]:
    findings = [*facts.findings, *facts.quality.findings]
    if CROPPED in facts.notes:
        findings.append(CROPPED)
    copies = sorted(copies, key=lambda copy: (copy[0].row, copy[0].frame))
    if copies:
        findings.append(f"{copies[0][1].kind} of another image")
    if facts.image_id in ingested.duplicates.crowded:
        findings.append(CROWDED)
    findings += filter(None, [ingested.duplicates.of_number(facts)])
    if any(other.label != facts.label for other, _ in copies):
        findings.append(TWO_LABELS)
    return {
        "row": facts.row,
        "frame": facts.frame,
        "view": facts.view,
        "image_id": facts.image_id,
        "split": ingested.assigned[facts.patient_key],
        "counts": facts.quality.total,
        "counts_ratio": _number(facts.counts_ratio),
        "dispersion": _number(facts.quality.dispersion),
        "findings": "; ".join(findings),
        "duplicate_of_row": copies[0][0].row if copies else "",
        "duplicate_kind": copies[0][1].kind if copies else "",
        "notes": "; ".join(note for note in facts.notes if note not in findings),
    }


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"
