"""Versions: what is installed and what is pinned lies within the ranges of pyproject.toml."""

import importlib.metadata
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.lowest_versions import lowest_versions

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
RANGES = {
    canonicalize_name(r.name): r.specifier
    for r in map(Requirement, sum(EXTRAS.values(), PROJECT["dependencies"]))
    if r.specifier
}
# A line may end in a comment or begin with one.
LINES = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").open())
PINS = [Requirement(line) for line in LINES if line]


@pytest.mark.parametrize("name", RANGES)
def test_installed_version_lies_within_the_range(name):
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    assert version in RANGES[name], f"{name} {version} is not {RANGES[name]}"


def test_pinned_versions_lie_within_the_ranges_on_every_python():
    pinned = [(canonicalize_name(pin.name), str(pin.specifier)) for pin in PINS]
    assert RANGES.keys() <= {name for name, _ in pinned}
    outside = [
        f"{name}{version}"
        for name, version in pinned
        if name in RANGES and version.removeprefix("==") not in RANGES[name]
    ]
    assert not outside


def test_jaxlib_that_computes_wrongly_is_excluded():
    assert "0.10.2" not in RANGES["jax"]
    assert "0.10.1" in RANGES["jax"]


def test_every_range_has_a_lowest_version_that_can_be_asked_for():
    lowest = dict(line.split("==") for line in lowest_versions(*EXTRAS))
    assert {canonicalize_name(name) for name in lowest} == RANGES.keys()
    assert all(version in RANGES[canonicalize_name(n)] for n, version in lowest.items())
