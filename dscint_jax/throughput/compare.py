"""Measurements of several networks, of each in turn with its peer in PyTorch, and what they tell.

Each measurement is a process of its own. A round has one of every framework, one after the other,
so that a machine that slows down slows all; a ratio is that of two neighbours.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dscint_jax import models
from dscint_jax.models import cost
from dscint_jax.models.dscint import POOL_AFTER, READINGS
from dscint_jax.throughput.workload import (
    EXACT,
    JAX,
    ONNXRUNTIME,
    TOLERANCE,
    TORCH,
    Measurement,
    Workload,
)
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.progress import say

NETWORKS = [name for name in models.NETWORKS if name != "dual_view"]
"""Those that read one image at a time."""

PEER_NETWORKS = [name for name in NETWORKS if not name.endswith("_bn")]
"""Those that PyTorch has too: torchvision's, timm's, and our Dscint written in PyTorch."""

PASSES = {True: 3, False: 1}
"""Forward passes that a step is counted as: of training, two more for the gradients."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One network at one batch size.

    Attributes:
      workload: what was measured.
      flops: of a step, by the network's forward pass.
      measured: by framework, one of each round.
      refused: why there is no ratio, by peer.
    """

    workload: Workload
    flops: float
    measured: dict[str, list[Measurement]]
    refused: dict[str, str]

    def images_s(self, framework: str) -> float:
        """Images a second, of the median round."""
        return self.workload.batch / statistics.median(m.step_s for m in self.measured[framework])

    def ratios(self, peer: str) -> list[float]:
        """How many times faster than the peer JAX is, round by round; none where refused."""
        if peer in self.refused:
            return []
        pairs = zip(self.measured[JAX], self.measured[peer], strict=True)
        return [other.step_s / ours.step_s for ours, other in pairs]

    def of_peak(self, framework: str) -> float:
        """The share of a matrix product's speed, which was measured in the same process."""
        shares = [self.flops / m.step_s / m.gemm_flops for m in self.measured[framework]]
        return statistics.median(shares)

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        frameworks = {
            name: {
                "images_s": self.images_s(name),
                "of_gemm_peak": self.of_peak(name),
                "rounds": [dataclasses.asdict(m) for m in measurements],
            }
            for name, measurements in self.measured.items()
        }
        peers = [name for name in self.measured if name != JAX]
        return {
            **dataclasses.asdict(self.workload),
            "flops_a_step": self.flops,
            "frameworks": frameworks,
            "ratios": {peer: self.ratios(peer) for peer in peers},
            "refused": self.refused,
        }


def compare(workload: Workload, peers: Sequence[str], rounds: int) -> Comparison:
    """Measures one workload.

    Raises:
      UserError: a measurement failed; its process said why.
    """
    flops = cost.network_cost(
        workload.network, num_classes=workload.CLASSES, size=workload.size, options=workload.options
    ).flops
    measured: dict[str, list[Measurement]] = {name: [] for name in (JAX, *peers)}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        for number in range(1, rounds + 1):
            for name, measurements in measured.items():
                found = measure_apart(workload, name, weights)
                measurements.append(found)
                say(
                    f"{workload.network}, batch {workload.batch}, round {number} of {rounds}, "
                    f"{name}: {workload.batch / found.step_s:.1f} images/s"
                )
        refused = {}
        for peer in peers:
            first = {name: measured[name][0] for name in (JAX, peer)}
            reason = difference(first[JAX], first[peer], TOLERANCE[workload.dtype])
            if reason:
                if peer != ONNXRUNTIME:
                    reason += _in_64_bits(workload, first, weights)
                refused[peer] = reason
                say(f"{workload.network}: no ratio to {peer}: {reason}")
    return Comparison(workload, flops * workload.batch * PASSES[workload.train], measured, refused)


def _in_64_bits(workload: Workload, first: Mapping[str, Measurement], weights: Path) -> str:
    """Whose first step differs from that in 64 bits by more than rounding."""
    say(f"{workload.network}: the two differ; PyTorch computes the first step in 64 bits too")
    exact = measure_apart(dataclasses.replace(workload, dtype=EXACT, seconds=0), TORCH, weights)
    tolerance = TOLERANCE[workload.dtype]
    off = [name for name, one in first.items() if difference(one, exact, tolerance)]
    return (
        f"; in 64 bits loss {exact.loss:.6g} and gradient_norm {exact.gradient_norm:.6g}, from "
        f"which {' and '.join(off) or 'neither'} is off by more than rounding"
    )


def workload_of(network: str, **fields: Any) -> Workload:
    """A workload of a network of the registry: its defaults, nothing dropped out."""
    options = models.complete_options(network, {})
    options.pop("dtype", None)
    if network == "dscint":
        widths = READINGS[options["reading"]]
        options |= {"widths": widths, "pool_after": POOL_AFTER}
        options["strides"] = (2, *[1] * (len(widths) - 1))
    else:
        options = {name: value for name, value in options.items() if name == "dropout"}
    if "dropout" in options:
        options["dropout"] = 0.0
    return Workload(network=network, options=options, **fields)


def measure_apart(
    workload: Workload, framework: str, weights: Path, environment: Mapping[str, str] | None = None
) -> Measurement:
    """Measures one framework in a process of its own.

    Args:
      workload: what to time.
      framework: JAX or one of PEERS.
      weights: the file that JAX writes its first weights into, and a peer reads them from.
      environment: variables that the process has besides this one's.

    Raises:
      UserError: the process failed; it said why.
    """
    program = "from dscint_jax.throughput.child import run; run()"
    words = [sys.executable, "-c", program, framework, str(weights)]
    child = subprocess.run(
        words,
        input=json.dumps(dataclasses.asdict(workload)),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    if child.returncode:
        said = child.stderr.strip().splitlines() or [f"it ended with status {child.returncode}"]
        raise UserError(f"{workload.network}, {framework}: {said[-1].removeprefix('error: ')}")
    told = json.loads(child.stdout.splitlines()[-1])
    return Measurement(**{**told, "quartiles_s": tuple(told["quartiles_s"])})


def difference(ours: Measurement, other: Measurement, tolerance: float) -> str | None:
    """Why the first steps of the two do not compute the same; None if they do."""
    for name in ("loss", "gradient_norm"):
        a, b = getattr(ours, name), getattr(other, name)
        # Written so that what is not a number fails.
        if not abs(a - b) <= tolerance * max(abs(a), abs(b)):
            return f"the first step's {name} is {a:.6g} here and {b:.6g} there"
    return None
