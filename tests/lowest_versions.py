"""The lower bounds of pyproject.toml as requirements, so that they can be installed and tested.

python tests/lowest_versions.py dev >lowest.txt; pip install -r lowest.txt; pip install --no-deps .
"""

import argparse
import tomllib
from pathlib import Path

from packaging.requirements import Requirement


def lowest_versions(*extras: str) -> list[str]:
    """'name==version' of every dependency, and of those of some extras."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())[
        "project"
    ]
    texts = sum((project["optional-dependencies"][e] for e in extras), project["dependencies"])
    bounds = (
        (requirement.name, bound.version)
        for requirement in map(Requirement, texts)
        for bound in requirement.specifier
        if bound.operator == ">="
    )
    return [f"{name}=={version}" for name, version in bounds]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("extra", nargs="*", help="of pyproject.toml, such as dev")
    print("\n".join(lowest_versions(*parser.parse_args().extra)))
