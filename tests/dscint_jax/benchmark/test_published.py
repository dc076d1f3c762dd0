"""The results that are published with the project: whole, and what the documents say of them."""

import importlib.util
import json

import pytest

from dscint_jax.benchmark.results import check_files
from tests.dscint_jax.conftest import TESTS

PROJECT = TESTS.parent


@pytest.fixture(scope="module")
def documents():
    spec = importlib.util.spec_from_file_location("make", PROJECT / "docs" / "make_benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results(documents):
    return json.loads(documents.RESULTS.read_text())


def test_published_results_are_whole_and_their_tables_follow(documents, results):
    check_files(results, documents.RESULTS.parent)


def test_documents_say_what_the_results_say(documents, results):
    assert documents.FILE.read_text() == documents.text(results)
    readme = documents.README.read_text()
    assert readme == documents.readme(results, readme)
