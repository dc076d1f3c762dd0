"""The config that a run has recorded, for `--config runs/dscint/config.json`.

In: a work directory's config.json. Out: the config, as a config file's `get_config` returns one.
The flag reads Python files alone, so it is given this one, with the JSON file as its argument.
"""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dscint_jax.config import add_later_fields
from dscint_jax.errors import DscintError


def get_config(path: str) -> ConfigDict:
    """Reads the config of a run.

    Args:
      path: of its config.json.

    Raises:
      DscintError: it cannot be read, or is no config of a run.
    """
    try:
        fields = json.loads(Path(path).read_text(), object_hook=_with_tuples)
        return ConfigDict(add_later_fields(fields))
    except OSError as error:
        raise DscintError(f"--config {path}: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, AttributeError, TypeError, KeyError):
        raise DscintError(f"--config {path} is no config of a run") from None


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that they were written from."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
