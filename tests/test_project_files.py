"""CITATION.cff and .pre-commit-config.yaml: that they parse and agree with the project."""

import tomllib
from pathlib import Path

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
