"""One measurement in a process of its own, which `compare` starts.

In: the framework and the file of weights as arguments, a Workload as JSON by standard input. Out: a
Measurement on the last line of standard output. Only the framework that is measured is imported,
but that JAX writes the graph for onnxruntime.
"""

import dataclasses
import json
import sys
from pathlib import Path

from dscint_jax.command import run_command
from dscint_jax.throughput.workload import JAX, ONNXRUNTIME, TORCH_COMPILE, Workload


def run() -> None:
    """Measures what the process was asked to; an error is one line and status 2."""
    run_command(_measure)


def _measure() -> None:
    framework, weights = sys.argv[1], Path(sys.argv[2])
    told = json.load(sys.stdin)
    workload = Workload(**{**told, "size": tuple(told["size"])})
    if framework == JAX:
        from dscint_jax.throughput.jax_step import measure

        measurement = measure(workload, weights)
    elif framework == ONNXRUNTIME:
        from dscint_jax.throughput.onnx_step import measure as measure_onnx

        measurement = measure_onnx(workload, weights)
    else:
        from dscint_jax.throughput.torch_step import measure as measure_torch

        measurement = measure_torch(workload, weights, compiled=framework == TORCH_COMPILE)
    print(json.dumps(dataclasses.asdict(measurement)))
