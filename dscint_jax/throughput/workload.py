"""What is measured, and what a measurement tells; both frameworks share them."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import numpy as np

T = TypeVar("T")

JAX = "jax"
TORCH, TORCH_COMPILE, ONNXRUNTIME = "torch", "torch_compile", "onnxruntime"
PEERS = (TORCH, TORCH_COMPILE, ONNXRUNTIME)

MEASURED = ("dscint", "alexnet", "vgg16", "resnet18", "resnet50", "densenet121", "inception_v4")
"""The networks that are measured where none are named."""

EXACT = "float64"
"""The type, of PyTorch alone, that says which of two computations that differ is off."""

TOLERANCE = {"float32": 2e-3, "bfloat16": 5e-2}
"""Largest relative difference of two losses, or gradient norms, that is rounding, by type."""

WARM_UP = 2
"""Steps that are taken before time is taken, after the first."""

GEMM_SIDE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
"""Sides of the square matrices whose product is the machine's peak."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """One network and what it is given.

    Attributes:
      network: a name of the registry.
      size: height and width of an image.
      batch: images a step.
      dtype: of the computation; parameters are float32, of EXACT of that type too.
      options: of the network, complete; none drops features out.
      train: whole training steps, or forward passes of the network as it predicts.
      seconds: how long steps are timed, at least; never fewer than five.
      CLIP: upper limit of a normalised pixel, sqrt(counts / SCALE).
    """

    CLASSES: ClassVar[int] = 4
    CLIP: ClassVar[float] = 3.0
    SCALE: ClassVar[float] = 8.0
    LEARNING_RATE: ClassVar[float] = 1e-3
    WEIGHT_DECAY: ClassVar[float] = 1e-2
    CLIP_NORM: ClassVar[float] = 1.0

    network: str
    size: tuple[int, int]
    batch: int
    dtype: str
    options: dict[str, Any]
    train: bool
    seconds: float

    def counts(self) -> np.ndarray:
        """The images, (batch, height, width, 1) int32, the same in every framework."""
        random = np.random.default_rng(0)
        return random.poisson(5, (self.batch, *self.size, 1)).astype(np.int32)

    def labels(self) -> np.ndarray:
        """Their classes, (batch,) int32."""
        return (np.arange(self.batch) % self.CLASSES).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one process measured.

    Attributes:
      framework: its name and version, and how it was used.
      step_s: median seconds of a step.
      quartiles_s: of the seconds of a step.
      steps: how many were timed.
      first_step_s: seconds of the first, with compilation.
      peak_bytes: of device memory, where the device tells, else of the process.
      loss, gradient_norm: of the first step, with the weights that all frameworks share; the norm
        is 0 where only a forward pass is timed.
      gemm_flops: operations a second of a product of large square matrices, measured here.
      device: the device's name.
    """

    framework: str
    step_s: float
    quartiles_s: tuple[float, float]
    steps: int
    first_step_s: float
    peak_bytes: float
    loss: float
    gradient_norm: float
    gemm_flops: float
    device: str


def timed(step: Callable[[], object], seconds: float, least: int = 5) -> list[float]:
    """Seconds of each step, taken one after the other until `seconds` are over.

    `step` returns when its work is done.
    """
    times = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


def gemm_flops(product: Callable[[], object], side: int) -> float:
    """Operations a second of a product of two matrices of `side`."""
    product()
    return 2 * side**3 / statistics.median(timed(product, 1.0))


def measured(
    step: Callable[[], T], seconds: float, prepare: Callable[[], None] = lambda: None
) -> tuple[T, dict[str, Any]]:
    """Takes steps as `timed`; what the first returned, and those of a Measurement's fields that
    are times. `prepare` comes before the first, and its time counts as the first step's.
    """
    start = time.perf_counter()
    prepare()
    told = step()
    first_step_s = time.perf_counter() - start
    for _ in range(WARM_UP):
        step()
    times = timed(step, seconds)
    first, median, third = np.quantile(times, (0.25, 0.5, 0.75)).tolist()
    return told, {
        "first_step_s": first_step_s,
        "step_s": median,
        "quartiles_s": (first, third),
        "steps": len(times),
    }
