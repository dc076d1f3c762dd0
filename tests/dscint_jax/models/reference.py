"""The reference networks' weights for the golden logits: each tensor a function of its name.

golden/NAME.npz holds the 1000 logits of the standard definitions (torchvision's AlexNet, VGG,
ResNet and DenseNet, timm's Inception-v4) for two inputs under these weights, the names and shapes
of the tensors, the count of parameters and the side of the input.
"""

import ast
import dataclasses
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
NAMES = tuple(sorted(path.stem for path in GOLDEN.glob("*.npz")))


@dataclasses.dataclass(frozen=True)
class Reference:
    """One network's golden values.

    Attributes:
      images: (2, side, side, 3).
      logits: (2, 1000).
      parameters: how many numbers are trained.
      shapes: of every tensor by its name, in PyTorch's order of axes.
    """

    images: np.ndarray
    logits: np.ndarray
    parameters: int
    shapes: dict[str, tuple[int, ...]]

    def state_dict(self) -> dict[str, np.ndarray]:
        return {name: values(name, shape) for name, shape in self.shapes.items()}


def load(network: str) -> Reference:
    with np.load(GOLDEN / f"{network}.npz") as golden:
        shapes = zip(golden["names"].tolist(), golden["shapes"].tolist(), strict=True)
        return Reference(
            images=images(int(golden["side"])).transpose(0, 2, 3, 1),
            logits=golden["logits"],
            parameters=int(golden["parameters"]),
            shapes={name: ast.literal_eval(shape) for name, shape in shapes},
        )


def images(side: int) -> np.ndarray:
    """The two inputs, (2, 3, side, side), of spread 1."""
    return values("input", (2, 3, side, side)) * np.float32(np.sqrt(3 * side * side / 2))


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of this name: norm scales and variances near 1, biases and means near 0."""
    random = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    noise = random.standard_normal(shape)
    if name.endswith("running_var"):
        noise = 1 + 0.1 * np.abs(noise)
    elif name.endswith(("running_mean", "bias")):
        noise = 0.1 * noise
    elif len(shape) == 1:
        noise = 1 + 0.1 * noise
    elif len(shape) > 1:
        noise = noise * np.sqrt(2 / np.prod(shape[1:]))
    return noise.astype(np.float32)
