"""The results that are published with the toolkit, and the documents that quote them."""

import importlib.util
from pathlib import Path

import pytest

from dscint_jax.benchmark.results import check_files
from tfds_builder.commandline.files import read_json

ROOT = Path(__file__).parents[3]
RESULTS = sorted((ROOT / "results").glob("*/results.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_published_results_are_whole_and_their_tables_follow(path):
    check_files(read_json(path), path.parent)


def test_documents_say_what_the_results_say():
    spec = importlib.util.spec_from_file_location("make", ROOT / "docs" / "make_benchmark.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    for path, text in make.documents():
        assert path.read_text() == text, "run python docs/make_benchmark.py"
