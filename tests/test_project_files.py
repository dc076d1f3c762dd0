"""CITATION.cff, .pre-commit-config.yaml, Dockerfile; what a Python without our packages says."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parent.parent
METADATA = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]


def test_citation_has_the_version_and_licence_of_the_package_and_names_the_paper():
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "abstract", "authors"} <= citation.keys()
    assert citation["version"] == METADATA["version"]
    assert citation["license"] == METADATA["license"]
    (paper,) = citation["references"]
    assert f"https://doi.org/{paper['doi']}" in (PROJECT / "README.md").read_text()
    assert (paper["volume"], paper["issue"]) == (48, 10)


def test_hooks_run_from_the_environment_and_download_nothing():
    config = yaml.safe_load((PROJECT / ".pre-commit-config.yaml").read_text())
    for repository in config["repos"]:
        assert repository["repo"] == "local"
        for hook in repository["hooks"]:
            assert hook["language"] == "system"
            assert hook["entry"].startswith("python -m ")


def test_image_has_what_the_project_has_and_runs_without_root():
    text = (PROJECT / "Dockerfile").read_text()
    (base,) = re.findall(r"^ARG BASE=python:(\d\.\d+)-slim$", text, re.MULTILINE)
    assert f"Programming Language :: Python :: {base}" in METADATA["classifiers"]
    (extras,) = re.findall(r"extras=([\w,-]+);", text)
    assert {*extras.split(",")} <= METADATA["optional-dependencies"].keys()
    let_in = {
        line[1:]
        for line in (PROJECT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        name
        for sources in re.findall(r"^COPY (?!--)(.+) \S+$", text, re.MULTILINE)
        for name in sources.split()
    }
    assert copied == let_in
    assert all((PROJECT / name).exists() for name in copied)
    # The last user that a stage names holds for those that begin with it.
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["10001:10001"]


@pytest.mark.parametrize("command", ["dscint_jax.main", "dscint_jax.compare", "tfds_builder.build"])
def test_command_without_its_environment_says_what_to_do_in_one_line(command):
    # -S: without the packages that are installed.
    words = [sys.executable, "-S", "-m", command, "--help"]
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "run ./run.sh setup once, then source .venv/bin/activate" in done.stderr
