"""Writes the pages of results/ and the tables of the documents from results/*/results.json.

    python docs/make_benchmark.py

In a document, what stands between `<!-- results/NAME: TABLE -->` and `<!-- end -->` is written
anew: a table of `dscint_jax.benchmark.page`, by its name.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from dscint_jax.benchmark.page import page_text, tables
from dscint_jax.report.tables import markdown_text
from tfds_builder.commandline.files import read_json

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "reference" / "benchmark.md")
PLACE = re.compile(r"(<!-- (results/\w+): (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def documents() -> Iterator[tuple[Path, str]]:
    """Every file that is written, and its text."""
    for path in sorted((ROOT / "results").glob("*/results.json")):
        yield path.with_name("README.md"), page_text(read_json(path))
    for path in DOCUMENTS:
        yield path, PLACE.sub(_filled, path.read_text())


def _filled(place: re.Match[str]) -> str:
    start, folder, name, end = place.groups()
    results = read_json(ROOT / folder / "results.json")
    (table,) = (table for table in tables(results) if table.name == name)
    return f"{start}\n{markdown_text(table)}\n{end}"


if __name__ == "__main__":
    for path, text in documents():
        path.write_text(text)
