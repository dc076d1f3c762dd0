"""Where the file of a `--config` lies: one's own, or one that is shipped."""

import re
from pathlib import Path

from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.places import home_expanded

PACKAGE = Path(__file__).parent

_VALUE = re.compile(r"(.+?\.py)(?::(.*))?", re.DOTALL)
"""FILE or FILE:ARGUMENT; a folder may have ".py" in its name too."""


def located(value: str) -> str:
    """FILE or FILE:ARGUMENT with the path of the file; what is neither stays as it is."""
    parts = _VALUE.fullmatch(value)
    if not parts:
        return value
    file, argument = config_file(parts[1]), parts[2]
    return str(file) if argument is None else f"{file}:{argument}"


def config_file(name: str) -> Path:
    """One's own file, or else the shipped one where the name is configs/NAME.py.

    Raises:
      UserError: there is neither, or ml_collections would cut its path.
    """
    file, inside = home_expanded(name), PACKAGE / "configs"
    # A wheel holds them within the package; in a checkout they lie beside it.
    shipped = inside if inside.is_dir() else PACKAGE.parent / "configs"
    if not file.exists() and file.parent == Path("configs"):
        file = shipped / file.name
    if file.exists():
        if ":" in str(file):
            raise UserError(
                f"--config {file}: what follows a colon is taken for a network; use a copy of the "
                "file in a folder without a colon"
            )
        return file
    names = ", ".join(sorted(f"configs/{file.name}" for file in shipped.glob("*.py")))
    raise UserError(f"--config {name}: there is no such file; shipped are {names}")
