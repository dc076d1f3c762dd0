"""Where the time of a training step goes, and of its compilation.

    python -m tests.benchmarks.step_parts --config configs/quickstart.py

In: a config. Out: a line a part of the step, on one device: seconds of processor time to compile
it, and the median time that it takes. The parts are compiled by themselves, so that their sum is
not quite the whole.
"""

import functools
import runpy
import statistics
import time

import jax
import numpy as np
import optax
from flax import nnx

from dscint_jax.training import step
from dscint_jax.training.experiment import make_experiment
from tfds_builder.commandline.command import CommandParser

CLASSES, HEIGHT, WIDTH, ROUNDS = 4, 1024, 256, 15


def batch_of(config):
    """Random counts of the config's batch and image size, (batch, height, width, 1)."""
    random, size = np.random.default_rng(0), config.batch_size
    height, width = HEIGHT // config.data.pool, WIDTH // config.data.pool
    return {
        "counts": random.poisson(5, (size, height, width, 1)).astype(np.int32),
        "scale": np.full(size, 8.0, np.float32),
        "label": (np.arange(size) % CLASSES).astype(np.int32),
        "mask": np.ones(size, bool),
    }


def median_ms(call, rounds=ROUNDS):
    """Of several calls after the first."""
    jax.block_until_ready(call())
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def parts(config):
    """Functions with their arguments, by name; the last is the whole step."""
    experiment = make_experiment(config, (1,) * CLASSES)
    spec, state, batch = experiment.spec, experiment.initial_state(), batch_of(config)
    images = step._augmented(batch, state.step, spec)
    examples = {"images": images, "label": batch["label"]}

    def forward(state, examples):
        model = nnx.merge(spec.training, state.params, state.batch_stats, copy=True)
        return model(examples["images"], rngs=nnx.Rngs(dropout=jax.random.key(0)))

    def optimizer(state):
        with jax.numpy_dtype_promotion("standard"):
            updates, new = spec.optimizer.update(state.params, state.optimizer, state.params)
        return optax.apply_updates(state.params, updates), new

    return {
        "augmentation": (lambda batch, n: step._augmented(batch, n, spec), batch, state.step),
        "forward": (forward, state, examples),
        "forward and gradients": (
            lambda state, examples: step._gradients(state, examples, spec),
            *(state, examples),
        ),
        "optimiser": (optimizer, state),
        "whole step": (functools.partial(step.train_step, spec=spec), state, batch),
    }


def main() -> None:
    """Prints the lines."""
    parser = CommandParser(prog="python -m tests.benchmarks.step_parts")
    parser.add_argument("--config", default="configs/quickstart.py", help="file of a config")
    config = runpy.run_path(parser.parse_args().config)["get_config"]()
    for name, (function, *arguments) in parts(config).items():
        start = time.process_time()
        compiled = jax.jit(function).lower(*arguments).compile()
        seconds = time.process_time() - start
        taken = median_ms(functools.partial(compiled, *arguments))
        print(f"{name}: compiled in {seconds:.1f} s, {taken:.1f} ms", flush=True)


if __name__ == "__main__":
    main()
