"""Checks what `./run.sh` left behind: unseen patients, good scores, a cohort that is not easy.

python .ci/check_quickstart.py runs/quickstart
"""

import csv
import json
import sys
from pathlib import Path

from dscint_jax.baselines.linear_baseline import linear_baseline
from dscint_jax.input_pipeline import open_dataset


def main(folder: Path) -> None:
    """Prints each check; the exit status is 1 if any fails."""
    result = json.loads((folder / "dscint" / "eval" / "test" / "metrics.json").read_text())
    with (folder / "dscint" / "eval" / "test" / "predictions.csv").open(newline="") as file:
        tested = {row["patient_key"] for row in csv.DictReader(file)}
    with (folder / "data" / "splits.csv").open(newline="") as file:
        others = {row["patient_key"] for row in csv.DictReader(file) if row["split"] != "test"}
    intersections = open_dataset(folder / "data").info.metadata["split_proof"]["intersections"]
    baseline = linear_baseline(folder / "data").scores["accuracy"]
    page = (folder / "dscint" / "report" / "index.html").stat().st_size
    checks = [
        ("test images", result["support"], result["support"] >= 200),
        ("test patients seen in other splits", len(tested & others), not tested & others),
        ("patients in two splits, by the proof", intersections, _all_zero(intersections)),
        ("accuracy, at least 0.85", result["accuracy"], result["accuracy"] >= 0.85),
        ("macro F-1, at least 0.82", result["f1"], result["f1"] >= 0.82),
        ("logistic regression, under 0.70", baseline, baseline < 0.70),
        ("bytes of the report", page, page > 100_000),
    ]
    for name, value, holds in checks:
        print(f"{'ok  ' if holds else 'FAIL'} {name}: {value}")
    sys.exit(not all(holds for _, _, holds in checks))


def _all_zero(value: dict | int) -> bool:
    return all(map(_all_zero, value.values())) if isinstance(value, dict) else value == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
