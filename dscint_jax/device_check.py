"""What this package does on a machine with an accelerator, found out by one command, offline.

    python -m dscint_jax.device_check --workdir runs/device_check

In: a machine. Out: `device_check.json`, one entry a part: do the networks compute what the CPU
does; how fast do they train, beside PyTorch where it has them; how fast does a whole training go,
fed from the device's memory and from the host's; does a training repeated end in the same bits.
A part that is there already is not done again, and one that fails leaves the others alone.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dscint_jax.command import run_command
from dscint_jax.throughput.workload import MEASURED
from tfds_builder.commandline.command import CommandParser
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import check_writable, read_json, write_json
from tfds_builder.commandline.progress import say

FILE = "device_check.json"

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"

NARROW = {
    "widths": (8, 8, 16),
    "strides": (2, 1, 1),
    "pool_after": (2,),
    "attention_after": 2,
    "hidden": 8,
}
"""Options of a Dscint that any CPU trains in seconds."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is done.

    Attributes:
      networks: whose training step is set beside the CPU's, and whose throughput is measured.
      size, batch, dtype: of the throughput, and dtype of the trainings.
      rounds, seconds: of the throughput.
      patients: synthetic ones, who are trained on.
      steps: of each training.
      feeds: where the images of the whole trainings stay, by `config.data.cache`.
      options: of the network that is compared and trained.
      overrides: of the trainings' configs.
    """

    networks: tuple[str, ...] = MEASURED
    size: str = "1024x256"
    batch: int = 64
    dtype: str = "bfloat16"
    rounds: int = 3
    seconds: int = 5
    patients: int = 200
    steps: int = 300
    feeds: tuple[str, ...] = ("device", "host")
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)


FULL = Plan()
SMALL = Plan(
    networks=("dscint",),
    size="128x32",
    batch=4,
    dtype="float32",
    rounds=1,
    seconds=1,
    patients=12,
    steps=4,
    feeds=("host",),
    options=NARROW,
    overrides={"batch_size": 8, "data.pool": 8, "optimizer.warmup_steps": 1},
)


def agreement(plan: Plan, workdir: Path) -> dict[str, Any]:
    """Loss and gradient norm of each network's first step in float32, here and on the CPU.

    The images have 256x64 pixels. More than rounding between them is an error.
    """
    from dscint_jax.throughput.compare import difference, measure_apart, workload_of
    from dscint_jax.throughput.workload import JAX, TOLERANCE

    found: dict[str, Any] = {}
    errors = []
    for network in plan.networks:
        fields = {"size": (256, 64), "batch": 4, "dtype": "float32", "train": True, "seconds": 0.0}
        workload, weights = workload_of(network, **fields), workdir / "weights.safetensors"
        workload = dataclasses.replace(workload, options={**workload.options, **plan.options})
        here = measure_apart(workload, JAX, weights)
        there = measure_apart(workload, JAX, weights, {"JAX_PLATFORMS": "cpu"})
        weights.unlink()
        reason = difference(here, there, TOLERANCE["float32"])
        if reason:
            errors.append(f"{network}: {reason}")
        found[network] = {
            name: [getattr(measured, name) for measured in (here, there)]
            for name in ("device", "loss", "gradient_norm")
        }
        say(f"{network}: loss {here.loss:.6g} here, {there.loss:.6g} on the CPU")
    return {"networks": found, "errors": errors}


def throughput(plan: Plan, workdir: Path) -> dict[str, Any]:
    """What `dscint_jax.throughput` tells of the networks, beside PyTorch where it has them all."""
    path = workdir / "throughput.json"
    path.unlink(missing_ok=True)
    words = [part for name in plan.networks for part in ("--network", name)]
    if plan is FULL and all(map(importlib.util.find_spec, ("torch", "torchvision", "timm"))):
        words += ["--peer", "torch", "--peer", "torch_compile"]
    words += ["--size", plan.size, "--batch", plan.batch, "--dtype", plan.dtype]
    words += ["--rounds", plan.rounds, "--seconds", plan.seconds, "--out", path]
    try:
        _command("dscint_jax.throughput", *words)
    except UserError:
        # It has told what failed, beside what did not.
        if not path.exists():
            raise
    told = read_json(path)
    refused = [
        f"{comparison['network']}, {peer}: {reason}"
        for comparison in told["networks"]
        for peer, reason in comparison["refused"].items()
    ]
    return told | {"errors": [*told["errors"], *refused]}


def training(plan: Plan, workdir: Path) -> dict[str, Any]:
    """Dscint at full size on phantoms, fed from each of the places.

    The scores are of few steps on few patients.
    """
    _data_set(plan, workdir)
    found: dict[str, Any] = {"errors": []}
    run = workdir
    for feed in plan.feeds:
        run = _train("dscint.py", plan, workdir / f"fed_from_{feed}", cache=feed)
        found[feed] = _speed(run)
    _command("dscint_jax.evaluate", "--workdir", run, "--split", "test")
    found["metrics"] = read_json(run / "eval" / "test" / "metrics.json")
    found["attempt"] = read_json(run / "provenance.json")[-1]
    return found


def repeated(plan: Plan, workdir: Path) -> dict[str, Any]:
    """The quickstart's training, twice; on a GPU twice more with deterministic operations.

    Other bits of the last two are an error.
    """
    _data_set(plan, workdir)
    found: dict[str, Any] = {}
    run, same = workdir, True
    for flags in ("", DETERMINISTIC):
        speeds, weights = [], []
        for number in (1, 2):
            run = workdir / f"repeated_{'deterministic' if flags else 'as_it_is'}_{number}"
            _train("quickstart.py", plan, run, flags=flags)
            speeds.append(_speed(run))
            weights.append(_checksum(run))
        same = weights[0] == weights[1]
        found[flags or "as it is"] = {"same_bits": same, "speeds": speeds}
        if read_json(run / "provenance.json")[-1]["backend"] != "gpu":
            break
    return {"trainings": found, "errors": [] if same else ["two trainings end in other bits"]}


PARTS: dict[str, Callable[[Plan, Path], dict[str, Any]]] = {
    "agreement": agreement,
    "throughput": throughput,
    "training": training,
    "repeated": repeated,
}
"""Each returns what it found, and 'errors', which is empty where all is well."""


def check_device(workdir: Path, plan: Plan) -> bool:
    """Does what is not done yet, and writes FILE after each part.

    Returns:
      Whether every part succeeded.

    Raises:
      UserError: the folder cannot be written, or holds a check of another plan.
    """
    check_writable(workdir)
    path = workdir / FILE
    asked = json.loads(json.dumps(dataclasses.asdict(plan)))
    told = read_json(path) if path.exists() else {"plan": asked}
    if told.get("plan") != asked:
        raise UserError(f"{path} is of another plan; use another --workdir")
    for name, part in PARTS.items():
        if told.get(name, {"errors": ["not done"]})["errors"]:
            say(f"== {name}")
            try:
                told[name] = part(plan, workdir)
            except UserError as error:
                told[name] = {"errors": [str(error)]}
            write_json(path, told)
    for name in PARTS:
        say(f"{name}: {'; '.join(told[name]['errors']) or 'sound'}")
    say(f"all of it: {path}")
    return not any(told[name]["errors"] for name in PARTS)


def _backend() -> str:
    program = "import jax; print(jax.default_backend())"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return child.stdout.strip() or "cpu"


def _command(module: str, *words: Any, environment: Mapping[str, str] | None = None) -> None:
    """Runs one of our commands, whose lines pass on; UserError with the last one if it fails."""
    last = ""
    with subprocess.Popen(
        [sys.executable, "-m", module, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(environment or {})},
    ) as process:
        for line in process.stdout or ():
            say(line.rstrip("\n"))
            last = line.strip() or last
    if process.returncode:
        raise UserError(f"{module} ended with status {process.returncode}: {last}")


def _data_set(plan: Plan, workdir: Path) -> None:
    phantom = workdir / "phantom"
    _command("tfds_builder.phantom", "--out", phantom, "--patients", plan.patients, "--seed", 0)
    manifest, data = phantom / "manifest.csv", workdir / "data"
    _command("tfds_builder.build", "--manifest", manifest, "--data_dir", data)


def _train(config: str, plan: Plan, run: Path, *, cache: str = "auto", flags: str = "") -> Path:
    options: dict[str, Any] = {
        "steps": plan.steps,
        "evaluate_every": plan.steps,
        "log_every": max(plan.steps // 4, 1),
        "data.dir": run.parent / "data",
        "data.cache": cache,
        "model_options.dtype": plan.dtype,
        **{f"model_options.{name}": value for name, value in plan.options.items()},
        **plan.overrides,
    }
    words = [f"--config.{name}={value}" for name, value in options.items()]
    flags = " ".join(filter(None, (os.environ.get("XLA_FLAGS"), flags)))
    _command(
        "dscint_jax.main",
        *("--config", f"configs/{config}", "--workdir", run, *words),
        environment={"XLA_FLAGS": flags},
    )
    return run


def _speed(run: Path) -> dict[str, Any]:
    """What a run told last of its speed, also if it was complete before."""
    *_, last = (run / "train_speed.jsonl").read_text().splitlines()
    return json.loads(last)


def _checksum(run: Path) -> str:
    """Of all weights of a run's newest checkpoint."""
    from dscint_jax.evaluate.restored import load_weights
    from dscint_jax.export.metadata import weights_digest
    from dscint_jax.run.provenance import classes_of
    from dscint_jax.weights.export_torch import torch_state_dict

    weights = load_weights(run, checkpoint="latest", num_classes=len(classes_of(run)))
    return weights_digest(torch_state_dict(weights.params, weights.batch_stats))


def main() -> None:
    """The command line."""
    parser = CommandParser(
        prog="python -m dscint_jax.device_check",
        description="Find out what this package does on this machine's accelerator: whether it "
        f"computes what the CPU does, how fast, and whether in the same bits; {FILE}.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--workdir", type=Path, required=True, help="folder of the results and of all that is made"
    )
    parser.add_argument(
        "--small", action="store_true", help="three minutes on a CPU: shows that all of it runs"
    )
    arguments = parser.parse_args()

    if not arguments.small and _backend() == "cpu":
        raise UserError("JAX finds no accelerator here; --small shows that the check itself runs")
    # The accelerator belongs to the processes that are started.
    import jax

    jax.config.update("jax_platforms", "cpu")
    sys.exit(0 if check_device(arguments.workdir, SMALL if arguments.small else FULL) else 1)


if __name__ == "__main__":
    run_command(main)
