"""A work directory belongs to one config, its config.json; another config is refused."""

import json
from pathlib import Path

import jax

from dscint_jax.config import DURATIONS, MAY_CHANGE, Config, fields_of, flat, read_config
from dscint_jax.run.provenance import X64, attempts_of
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import write_json


def check_claim(workdir: Path, config: Config) -> int | None:
    """Checks that a work directory, if it is not new, belongs to a config; writes nothing.

    The data set may have moved: its fingerprint counts (`check_data`), not its path. A run may be
    trained on for more steps.

    Returns:
      The steps of before, if there are more now.

    Raises:
      UserError: the directory belongs to another config.
    """
    _check_settings(workdir)
    path = workdir / "config.json"
    old = _config_in(path) if path.exists() else config
    differences = [d for d in _differences(old, config) if d[0] not in MAY_CHANGE]
    # The same file may lie elsewhere; a resumed run does not read it.
    if Path(old.init_from).name != Path(config.init_from).name:
        differences.append(("init_from", old.init_from, config.init_from))
    fewer = int(old.steps) if int(old.steps) < int(config.steps) else None
    if fewer:
        differences = [d for d in differences if d[0] != "steps"]
    if differences:
        field, there, here = differences[0]
        others = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise UserError(
            f"{workdir} holds another config: config.{field} is {there} there and {here} "
            f"here{others}; use another --workdir, or the same config to resume"
        )
    return fewer


def claim(workdir: Path, config: Config) -> int | None:
    """Marks a work directory with its config, after `check_claim`, whose result it returns.

    Raises:
      UserError: it belongs to another config, or cannot be written.
    """
    fewer = check_claim(workdir, config)
    path = workdir / "config.json"
    if not path.exists() or _config_in(path) != config:
        write_json(path, config.to_dict())
    return fewer


def config_of(workdir: Path) -> Config:
    """The config a work directory was trained with.

    Raises:
      UserError: the directory holds none, or its arrays are of other types than JAX makes here.
    """
    if not (workdir / "config.json").exists():
        raise UserError(
            f"{workdir} holds no config.json, so no run; train first: python -m dscint_jax.main "
            f"--config ... --workdir {workdir}"
        )
    _check_settings(workdir)
    return _config_in(workdir / "config.json")


def _config_in(path: Path) -> Config:
    """A run's config.json, whose durations are in steps."""
    config = read_config(path)
    for name, _, value in fields_of(config):
        if name in DURATIONS and not isinstance(value, int):
            raise UserError(
                f"{path}: config.{name} is '{value}'; a run's config has steps there, as it was "
                f"written: put them back, or use another --workdir"
            )
    return config


def _check_settings(workdir: Path) -> None:
    """Raises UserError where the arrays of a run are of other types than this process makes."""
    for attempt in attempts_of(workdir)[-1:]:
        there, here = attempt.get("jax_config", {}).get(X64), getattr(jax.config, f"jax_{X64}")
        if there not in (None, here):
            raise UserError(
                f"{workdir} was trained with JAX_ENABLE_X64={there:d}, and here it is {here:d}; "
                f"set JAX_ENABLE_X64={there:d}"
            )


def _differences(*configs: Config) -> list[tuple[str, str, str]]:
    """The fields in which two configs differ, with the values of both as JSON."""
    first, second = (
        {name: json.dumps(value) for name, value in flat(config.to_dict()).items()}
        for config in configs
    )
    gone = '"absent"'
    told = [(n, first.get(n, gone), second.get(n, gone)) for n in sorted(first | second)]
    return [one for one in told if one[1] != one[2]]
