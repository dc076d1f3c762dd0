"""Checks that shortcuts do not read phantoms: mean accuracies over the seeds of the files.

python .ci/check_shortcuts.py 0.60 SCORES.json ...
"""

import json
import statistics
import sys
from pathlib import Path

from dscint_jax.baselines.shortcuts import LIMITED


def main(limit: float, files: list[Path]) -> None:
    """Prints the means of what sees pixels; the exit status is 1 if one reaches the limit."""
    reports = [json.loads(file.read_text()) for file in files]
    failed = False
    for name in LIMITED:
        found = [
            shortcut["scores"]["accuracy"]
            for report in reports
            for shortcut in report["shortcuts"]
            if shortcut["name"] == name
        ]
        mean = statistics.mean(found)
        failed |= mean >= limit
        print(f"{'FAIL' if mean >= limit else 'ok  '} {name}, under {limit}: {mean:.4f} of {found}")
    sys.exit(failed)


if __name__ == "__main__":
    main(float(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
