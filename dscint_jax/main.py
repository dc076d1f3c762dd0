"""Flags and start-up of a training run.

    python -m dscint_jax.main --config configs/dscint.py --workdir runs/dscint

Any field of the config: --config.batch_size=16, --config.data.dir=data.
"""

import dataclasses
import difflib
import functools
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, FieldReference, config_flags

from dscint_jax.config import DURATIONS, Config, fields_of, read_config
from dscint_jax.config_fields import meaning_of
from dscint_jax.config_files import located
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.places import home_expanded, path_of

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
slices are recognised; elsewhere every process is told its place (see docs/how_to/cluster.md):

  --coordinator_address HOST:PORT   where process 0 runs, and a free port there
  --num_processes N                 how many there are, on all machines
  --process_id I                    which of them this is, from 0
  --initialization_timeout SECONDS  how long to wait for the others (60)
  --distributed auto|off            off: this process trains alone, wherever it was started

  --status_when_stopped STATUS      exit status after a stop by a signal, for a scheduler that
                                    starts again what has failed (0)

Exit status: 0 trained (or stopped by SIGTERM, SIGHUP or SIGUSR1, checkpoint saved), 1 ended because
another process did, 2 bad input, 130 Ctrl-C."""

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    help_string="The experiment's config file.",
    # Any argument of the network may be set; other names are found by `Config.from_dict`.
    accept_new_attributes=True,
    lock_config=False,
)
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


class _ConfigParser(flags.ArgumentParser):
    """From --config's value to a ConfigDict, whose fields further flags override."""

    def __init__(self, loader: flags.ArgumentParser):
        self._loader = loader

    def parse(self, argument: str) -> Any:
        if Path(argument).is_dir():
            saved = Path(argument) / "config.json"
            file = saved if saved.is_file() else "configs/dscint.py"
            raise UserError(f"--config {argument} is a folder; name a file, such as {file}")
        if argument.endswith(".json"):
            return _overridable(read_config(home_expanded(argument)))
        config = self._loader.parse(located(argument))
        other = dataclasses.is_dataclass(config) and not isinstance(config, Config)
        if other or config is None or isinstance(config, (str, int, list, dict, ConfigDict)):
            hint = "; python -m dscint_jax.benchmark takes a benchmark" * other
            raise UserError(
                f"--config {argument}: get_config returns a {type(config).__name__}; it must "
                f"return a dscint_jax.config.Config{hint}"
            )
        # A file that cannot be read says so when it is first used.
        return _overridable(config) if isinstance(config, Config) else config


def _overridable(config: Config) -> ConfigDict:
    """A ConfigDict in which a duration may be a number or a text, and an option anything."""
    values = config.to_dict()
    for field in DURATIONS:
        *groups, name = field.split(".")
        place = functools.reduce(dict.__getitem__, groups, values)
        place[name] = FieldReference(place[name], field_type=object)
    options = values["model_options"]
    for name, option in options.items():
        if not isinstance(option, dict):
            options[name] = FieldReference(option, field_type=object)
    values["model_options"] = open_options = ConfigDict(options)
    found = ConfigDict(values)
    found.lock()
    open_options.unlock()
    return found


flags.FLAGS["config"].parser = _ConfigParser(flags.FLAGS["config"].parser)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Reads the command line; asks for help print it, mistakes become one line."""
    if {"-h", "--help", "-help", "--helpfull", "--helpshort"} & set(argv[1:]):
        print(f"{USAGE}\n\n{_fields_in_words()}")
        sys.exit(0)
    try:
        rest = flags.FLAGS(list(argv))
        _check_flags(rest)
    # A config file is the user's own Python: it may raise anything.
    except Exception as error:
        reason = error if isinstance(error, UserError) else f"{_reason(error)}; see --help"
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(2)
    return rest


def _fields_in_words() -> str:
    """The fields of a config, for --help."""
    lines = ["Fields of a config, with the values of configs/dscint.py:", ""]
    for name, field, default in fields_of(Config()):
        lines.append(f"  {name} = {default!r}")
        lines.append(textwrap.indent(textwrap.fill(meaning_of(field), 84), " " * 6))
    return "\n".join(lines)


def _reason(error: Exception) -> str:
    """The libraries' multi-line messages as one line that a user can act on."""
    text = " ".join(str(error.args[0] if len(error.args) == 1 else error).split())
    if isinstance(error, (AttributeError, KeyError)) and (field := _overridden_field(text)):
        names = {name.rpartition(".")[2]: name for name, _, _ in fields_of(Config())}
        close = difflib.get_close_matches(field, sorted(names), n=1)
        hint = f"; did you mean 'config.{names[close[0]]}'?" if close else ""
        if any(f"--config.model_options.{field}." in argument for argument in sys.argv):
            hint = "; write options of options into model_options in a copy of the config file"
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
        raise UserError(f"unexpected argument '{rest[1]}'; fields are set by --config.FIELD=VALUE")
    for flag, example in ((_CONFIG, "configs/dscint.py"), (_WORKDIR, "runs/dscint")):
        if flag.value is None:
            raise UserError(f"--{flag.name} is missing, such as --{flag.name} {example}")
    _read_workdir()
    _read_config()


def _read_config() -> Config:
    """The config as the flags have it."""
    # A config file that failed to load says so only when it is first used.
    given = _CONFIG.value.to_dict()
    if "config.model" in flags.FLAGS:
        raise UserError(
            f"--config.model={given['model']}: name the network after the config file, which knows "
            f"what it needs: --config FILE:{given['model']}"
        )
    return Config.from_dict(given)


def _read_workdir() -> Path:
    return path_of(_WORKDIR.value or "", "--workdir")


def main(argv: Sequence[str]) -> None:
    """Trains as the flags say."""
    del argv
    logging.set_verbosity(logging.WARNING)
    # Only now, so that --help and a mistyped flag do not wait for JAX.
    from dscint_jax.cluster import Cluster, run_together

    def train_until_stopped(cluster: Cluster) -> None:
        # And these after the processes have met: it takes seconds, and they may not fit.
        from dscint_jax.compilation_cache import use_compilation_cache
        from dscint_jax.training.profiling import NO_STEPS, parse_window
        from dscint_jax.training.train import train

        window = NO_STEPS if _PROFILE.value is None else parse_window(_PROFILE.value)
        use_compilation_cache()
        train(
            _read_config(),
            _read_workdir(),
            cluster=cluster,
            window=window,
            status_when_stopped=_STATUS_WHEN_STOPPED.value,
        )

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
