"""Writes docs/reference/benchmark_results.md, and the table in README.md, from results/.

python docs/make_benchmark.py
"""

import json
from pathlib import Path
from typing import Any

from dscint_jax.benchmark.page import page_text, scores_table
from dscint_jax.report.tables import markdown_text

PROJECT = Path(__file__).parent.parent
RESULTS = PROJECT / "results" / "cpu" / "results.json"
FILE = PROJECT / "docs" / "reference" / "benchmark_results.md"
README = PROJECT / "README.md"
BEGIN, END = "<!-- table of results/cpu -->\n", "<!-- end of the table -->\n"

HEAD = """# Benchmark results

Written from `results/cpu/results.json` by `python docs/make_benchmark.py`.
[Benchmark](benchmark.md) says how the results are made; `./run.sh benchmark` makes them."""


def text(results: dict[str, Any]) -> str:
    """The document."""
    return page_text(results, HEAD)


def readme(results: dict[str, Any], old: str) -> str:
    """The README with the first table in its place."""
    condition = results["conditions"][0]["name"]
    table = scores_table(condition, results["tables"]["comparison"][condition])
    before, _, rest = old.partition(BEGIN)
    return before + BEGIN + "\n" + markdown_text(table) + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    found = json.loads(RESULTS.read_text())
    FILE.write_text(text(found))
    README.write_text(readme(found, README.read_text()))
