"""A small phantom cohort, built once, and runs trained on it."""

import importlib.util
import sys
from pathlib import Path

import pytest

from dscint_jax.train import train
from tfds_builder import build
from tfds_builder.phantom import __main__ as phantom

TESTS = Path(__file__).parent.parent


def load_tiny_config():
    spec = importlib.util.spec_from_file_location("tiny", TESTS / "tiny.py")
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    return tiny.get_config()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """The data set of 24 phantoms."""
    folder = tmp_path_factory.mktemp("cohort")
    _run(phantom.main, "--out", folder / "phantom", "--patients", "24", "--seed", "3")
    manifest = folder / "phantom" / "manifest.csv"
    _run(build.main, "--manifest", manifest, "--data_dir", folder / "data", "--workers", "1")
    return folder / "data"


@pytest.fixture
def config(data_dir):
    """The tiny config, on the small cohort."""
    config = load_tiny_config()
    config.data.dir = str(data_dir)
    return config


@pytest.fixture(scope="session")
def trained(data_dir, tmp_path_factory) -> Path:
    """The work directory of one finished tiny run; tests only read it."""
    config = load_tiny_config()
    config.data.dir = str(data_dir)
    workdir = tmp_path_factory.mktemp("trained")
    train(config, workdir)
    return workdir


def _run(main, *arguments) -> None:
    before = sys.argv
    sys.argv = ["command", *map(str, arguments)]
    try:
        main()
    finally:
        sys.argv = before
