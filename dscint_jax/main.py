"""Flags and start-up of a training run.

    python -m dscint_jax.main --config configs/dscint.py --workdir runs/dscint

Any field of the config: --config.batch_size=16, --config.data.dir=data.
"""

import argparse
import ast
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from dscint_jax import saved_config
from dscint_jax.durations import free_durations
from dscint_jax.errors import DscintError
from tfds_builder.places import home_expanded, read_path

PACKAGE = Path(__file__).parent

USAGE = """usage: python -m dscint_jax.main --config FILE --workdir DIR [--config.FIELD=VALUE ...]

Train a network on whole-body bone scintigrams; started again, it resumes.

  --config FILE           configs/dscint.py, configs/quickstart.py, which are found from any
                          folder, or your own; FILE:NETWORK is the same experiment with another
                          network, such as configs/dscint.py:resnet50 or
                          configs/dscint.py:my_module:build; or the config.json of a run
  --workdir DIR           where checkpoints and metrics go
  --config.FIELD=VALUE    overrides a field, such as --config.steps="30 epochs" or
                          --config.data.dir=data or --config.model_options.attention=none
  --profile FIRST:COUNT   traces COUNT steps from the FIRST on, for xprof, such as 20:10
  --help                  this text

Several processes, on one machine or many, train as one. SLURM's srun, Open MPI's mpirun and TPU
slices are recognised; elsewhere every process is told its place (see launch/README.md):

  --coordinator_address HOST:PORT   where process 0 runs, and a free port there
  --num_processes N                 how many there are, on all machines
  --process_id I                    which of them this is, from 0
  --initialization_timeout SECONDS  how long to wait for the others (60)
  --distributed auto|off            off: this process trains alone, wherever it was started

  --status_when_stopped STATUS      exit status after a stop by a signal, for a scheduler that
                                    starts again what has failed (0)

Exit status: 0 trained (or stopped by SIGTERM, SIGHUP or SIGUSR1, checkpoint saved), 1 ended because
another process did, 2 bad input, 130 Ctrl-C."""

_CONFIG_VALUE = re.compile(r"(.+?\.py)(?::(.*))?", re.DOTALL)
"""FILE or FILE:NETWORK; a folder may have ".py" in its name too."""

_CONFIG = config_flags.DEFINE_config_file("config", help_string="The experiment's config file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints and metrics go.")
_PROFILE = flags.DEFINE_string("profile", None, "FIRST:COUNT, the steps to trace.")
_COORDINATOR_ADDRESS = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes train.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
_INITIALIZATION_TIMEOUT = flags.DEFINE_float(
    "initialization_timeout", 60, "Seconds to wait for the other processes.", lower_bound=1
)
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed", "auto", ["auto", "off"], "Whether to look for other processes."
)
_STATUS_WHEN_STOPPED = flags.DEFINE_integer(
    "status_when_stopped", 0, "Exit status after a stop by a signal.", 0, 255
)


class _WithFreeDurations(flags.ArgumentParser):
    """Loads a config file, in which durations may then be overridden by texts and by numbers."""

    def __init__(self, loader: flags.ArgumentParser):
        self._loader = loader

    def parse(self, path: str) -> Any:
        config = self._loader.parse(path)
        if isinstance(config, ConfigDict):
            free_durations(config)
        return config


flags.FLAGS["config"].parser = _WithFreeDurations(flags.FLAGS["config"].parser)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Reads the command line; asks for help print it, mistakes become one line."""
    if {"-h", "--help", "-help", "--helpfull", "--helpshort"} & set(argv[1:]):
        print(USAGE)
        sys.exit(0)
    try:
        rest = flags.FLAGS(_with_saved_config(_with_network(_with_shipped_config(argv))))
        _check_flags(rest)
    except DscintError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    # A config file is the user's own Python: it may raise anything.
    except Exception as error:
        print(f"error: {_reason(error)}; see --help", file=sys.stderr)
        sys.exit(2)
    return rest


def _with_shipped_config(argv: Sequence[str]) -> list[str]:
    """The arguments, with --config configs/NAME.py as the file that it means."""
    argv = list(argv)
    for i, value in _values(argv, "config"):
        if parts := _CONFIG_VALUE.fullmatch(value):
            file, network = _config_file(parts[1]), parts[2]
            named = f"{file}:{network}" if network is not None else str(file)
            argv[i] = argv[i].removesuffix(value) + named
    return argv


def _config_file(name: str) -> Path:
    """One's own file, or else the shipped one where the name is configs/NAME.py.

    Raises:
      DscintError: there is neither, or ml_collections would cut its path.
    """
    file, shipped = home_expanded(name), _shipped_configs()
    if not file.exists() and file.parent == Path("configs"):
        file = shipped / file.name
    if file.exists():
        if ":" in str(file):
            raise DscintError(
                f"--config {file}: what follows a colon is taken for a network; use a copy of the "
                "file in a folder without a colon"
            )
        return file
    names = ", ".join(sorted(f"configs/{file.name}" for file in shipped.glob("*.py")))
    raise DscintError(f"--config {name}: there is no such file; shipped are {names}")


def _shipped_configs() -> Path:
    """A wheel holds them within the package; in a checkout they lie beside it."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def _with_network(argv: Sequence[str]) -> list[str]:
    """The arguments, with a network named by --config.model handed to the config file.

    A config file that takes a network's name knows its options too; set as a field afterwards, the
    name would stand beside the options of another network.
    """
    argv = list(argv)
    models, files = (_values(argv, flag) for flag in ("config.model", "config"))
    if not models or not files:
        return argv
    model, place = models[-1][1], files[-1][0]
    parts = _CONFIG_VALUE.fullmatch(files[-1][1])
    if not parts or not _takes_argument(Path(parts[1])):
        return argv
    named = parts[2]
    if named not in (None, model):
        raise DscintError(
            f"--config names the network {named} and --config.model {model}; name one"
        )
    if named is None:
        argv[place] += f":{model}"
    return argv


def _with_saved_config(argv: Sequence[str]) -> list[str]:
    """The arguments, with a run's config.json handed to the config file that reads one."""
    argv = list(argv)
    for place, value in _values(argv, "config"):
        if Path(value).is_dir():
            saved = Path(value) / "config.json"
            file = saved if saved.is_file() else "configs/dscint.py"
            raise DscintError(f"--config {value} is a folder; name a file, such as {file}")
        if value.endswith(".json"):
            argv[place] = f"{argv[place].removesuffix(value)}{saved_config.__file__}:{value}"
    return argv


def _values(argv: Sequence[str], flag: str) -> list[tuple[int, str]]:
    """Where a flag's values stand and what they are: after '=' or as the next argument."""
    found = []
    for i, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name not in (f"--{flag}", f"-{flag}"):
            continue
        if equals:
            found.append((i, value))
        elif i + 1 < len(argv):
            found.append((i + 1, argv[i + 1]))
    return found


def _takes_argument(path: Path) -> bool:
    """Whether the file's get_config has a parameter; what is wrong with the file is said later."""
    try:
        tree = ast.parse(path.read_text())
    except (OSError, ValueError, SyntaxError):
        return False
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "get_config"]
    return any(f.args.args or f.args.posonlyargs for f in functions)


def _reason(error: Exception) -> str:
    """The libraries' multi-line messages as one line that a user can act on."""
    text = " ".join(str(error.args[0] if len(error.args) == 1 else error).split())
    if isinstance(error, (AttributeError, KeyError)) and (field := _overridden_field(text)):
        close = re.search(r'Did you mean "(\w+)"', text)
        hint = f"; did you mean '{close[1]}'?" if close else ""
        return f"config has no field '{field}'{hint}"
    if isinstance(error, OSError):
        return f"--config: {text.rpartition('[Errno')[2].partition('] ')[2] or text}"
    return f"{type(error).__name__}: {text}".removesuffix(": ")


def _overridden_field(text: str) -> str | None:
    """The field that an override on the command line names and the message is about."""
    names = {
        name
        for argument in sys.argv
        if argument.startswith("--config.")
        for name in argument.partition("=")[0].split(".")[1:]
    }
    return next((word for word in re.findall(r"\w+", text) if word in names), None)


def _check_flags(rest: Sequence[str]) -> None:
    if len(rest) > 1:
        raise DscintError(
            f"unexpected argument '{rest[1]}'; fields are set by --config.FIELD=VALUE"
        )
    for flag, example in ((_CONFIG, "configs/dscint.py"), (_WORKDIR, "runs/dscint")):
        if flag.value is None:
            raise DscintError(f"--{flag.name} is missing, such as --{flag.name} {example}")
    _read_workdir()
    # A config file that failed to load says so only when it is first used.
    _CONFIG.value.keys()


def _read_workdir() -> Path:
    try:
        return read_path(_WORKDIR.value)
    except argparse.ArgumentTypeError as error:
        raise DscintError(f"--workdir: {error}") from error


def main(argv: Sequence[str]) -> None:
    """Trains as the flags say."""
    del argv
    logging.set_verbosity(logging.WARNING)
    # Only now, so that --help and a mistyped flag do not wait for JAX.
    from dscint_jax.cluster import Cluster, run_together

    def train_until_stopped(cluster: Cluster) -> None:
        # And these after the processes have met: it takes seconds, and they may not fit.
        from dscint_jax.profiling import parse_window
        from dscint_jax.train import train

        window = parse_window(_PROFILE.value) if _PROFILE.value is not None else None
        status = _STATUS_WHEN_STOPPED.value
        try:
            train(
                *(_CONFIG.value, _read_workdir()),
                cluster=cluster,
                window=window,
                status_when_stopped=status,
            )
        except SystemExit as stop:
            if stop.code == 0:
                sys.exit(status)
            raise

    run_together(
        train_until_stopped,
        coordinator_address=_COORDINATOR_ADDRESS.value,
        num_processes=_NUM_PROCESSES.value,
        process_id=_PROCESS_ID.value,
        distributed=_DISTRIBUTED.value,
        initialization_timeout_s=_INITIALIZATION_TIMEOUT.value,
        workdir=_read_workdir(),
    )


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
