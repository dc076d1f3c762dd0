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


def config_file(name: str, *, plans: bool = False) -> Path:
    """One's own file, or else the shipped one where the name is configs/NAME.py.

    Args:
      name: of the file.
      plans: whether a plan of a benchmark is asked for, not the config of a run.

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
    fitting = [f.name for f in shipped.glob("*.py") if (f.stem == "benchmark") == plans]
    names = ", ".join(f"configs/{file}" for file in sorted(fitting))
    raise UserError(f"--config {name}: there is no such file; shipped are {names}")
