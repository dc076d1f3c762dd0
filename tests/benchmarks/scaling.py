"""What training on many devices costs, as far as one machine without them can tell.

    python -m tests.benchmarks.scaling --data_dir runs/quickstart/data

In: the speed of a device and of the links between them, as their makers tell or as measured; a data
set, if any. Out: what the devices send each other in a step of every network but dual_view at
1024x256 pixels, read from the program before it is compiled, and what follows from it and from the
counted operations: how many images a device must have in a step, so that messages take no more than
a tenth of the time. How long a step of the quickstart takes when one batch is divided over 1, 2, 4
and 8 devices that share this machine's cores. How many images of the data set a second one thread
reads from the disk.
"""

import os

# Before JAX is imported: devices are counted once.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import math
import re
import runpy
import statistics
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType

from dscint_jax import models
from dscint_jax.config import Config
from dscint_jax.input_pipeline import load_split
from dscint_jax.mesh import AXIS, replicate, shard_batch
from dscint_jax.models import cost
from dscint_jax.training import parallel
from dscint_jax.training.experiment import make_experiment
from tests.benchmarks.step_parts import CLASSES, batch_of, median_ms
from tfds_builder.commandline.command import CommandParser

DEVICES = (1, 2, 4, 8)
LATENCY_S = 50e-6
"""Of a message among many devices, besides the time of its bytes."""


def _mesh(count):
    return jax.make_mesh((count,), (AXIS,), (AxisType.Auto,), devices=jax.devices()[:count])


def sent(network):
    """(parameters, messages, numbers) of a step over all devices; each number has four bytes."""
    config = Config(model=network, batch_size=DEVICES[-1], steps=1)
    experiment = make_experiment(config, (1,) * CLASSES, AXIS)
    step = parallel.compile_train_step(experiment.spec, _mesh(DEVICES[-1]))
    batch = jax.eval_shape(lambda: batch_of(config))
    program = step.lower(experiment.state_shapes, batch).as_text()
    # The type of what is sent stands behind the function that adds it up.
    shapes = re.findall(
        r"stablehlo.all_reduce.*?\}\) : \(tensor<([\dx]*)x?f32>\)", program, re.DOTALL
    )
    numbers = [math.prod(map(int, filter(None, shape.split("x")))) for shape in shapes]
    parameters = sum(
        math.prod(leaf.shape) for leaf in jax.tree.leaves(experiment.state_shapes.params)
    )
    return parameters, len(numbers), sum(numbers)


def step_ms(config, count):
    """A step of the config's batch, divided over so many devices."""
    mesh = _mesh(count)
    experiment = make_experiment(config, (1,) * CLASSES, AXIS)
    state = replicate(experiment.initial_state(), mesh)
    batch = shard_batch(batch_of(config), mesh)
    take = parallel.compile_train_step(experiment.spec, mesh)

    def call():
        nonlocal state
        state, metrics = take(state, batch)
        return metrics

    return median_ms(call)


def images_a_second(data_dir, pool, batch=24, rounds=5):
    """Read from the disk, decoded and summed over blocks, by one thread."""
    images = load_split(data_dir, "train", pool=pool, cache_gib=0.0, cache="none")
    times = []
    for number in range(rounds):
        start = time.perf_counter()
        images.read(np.arange(number * batch, (number + 1) * batch))
        times.append(time.perf_counter() - start)
    return batch / statistics.median(times)


def main() -> None:
    """Prints the lines."""
    parser = CommandParser(
        prog="python -m tests.benchmarks.scaling",
        description="Print what training on many devices costs, as far as one machine can tell.",
    )
    add = parser.add_argument
    add("--data_dir", type=Path, help="data set whose images are read")
    add(
        "--tflops",
        type=float,
        default=300,
        help="10^12 operations a second that a device does (default: 300)",
    )
    add(
        "--link",
        type=float,
        default=50,
        help="10^9 bytes a second that a device sends (default: 50)",
    )
    arguments = parser.parse_args()
    data_dir = arguments.data_dir
    # What reads studies is its encoder and little more.
    for network in (name for name in models.NETWORKS if name != "dual_view"):
        parameters, messages, numbers = sent(network)
        # A ring sends everything twice; a training step is three forward passes.
        message_s = 2 * 4 * numbers / (1e9 * arguments.link) + messages * LATENCY_S
        image_s = 3 * cost.network_cost(network).flops / (1e12 * arguments.tflops)
        print(
            f"| {network} | {parameters / 1e6:.2f} | {4 * numbers / 1e6:.2f} | {messages} | "
            f"{1 / image_s:.0f} | {1e3 * message_s:.2f} | {math.ceil(9 * message_s / image_s)} |",
            flush=True,
        )
    config = runpy.run_path("configs/quickstart.py")["get_config"]()
    alone = None
    for count in DEVICES:
        taken = step_ms(config, count)
        alone = alone or taken
        print(f"{count} devices: {taken:.0f} ms a step, {taken / alone:.2f} times one", flush=True)
    for pool in (1, 4) if data_dir else ():
        print(f"pool {pool}: {images_a_second(data_dir, pool):.0f} images/s a thread", flush=True)


if __name__ == "__main__":
    main()
