"""Names and axis orders of weights, as networks here have them and as PyTorch does.

The path of a submodule is its name in the reference implementation (torchvision's, timm's), so only
leaves are renamed, and only kernels are turned: ('layer1', 0, 'conv1', 'kernel'), output channels
last, is 'layer1.0.conv1.weight', output channels first.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from tfds_builder.commandline.errors import UserError

TORCH_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
"""Leaves that have another name in PyTorch; all others keep theirs."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """One array of a network: its place, and the variable that holds it."""

    path: tuple[Any, ...]
    variable: nnx.Variable

    @property
    def name(self) -> str:
        """Its name in a state dict, such as 'layer1.0.bn1.running_mean'."""
        *module, leaf = map(str, self.path)
        return ".".join([*module, TORCH_LEAVES.get(leaf, leaf)])

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in PyTorch's order."""
        shape = self.variable.get_value().shape
        return tuple(shape[axis] for axis in self._torch_axes)

    def to_torch(self) -> Float[np.ndarray, "..."]:
        """Its values in PyTorch's order, float32."""
        values = np.asarray(self.variable.get_value(), np.float32)
        # Not np.ascontiguousarray, which makes a row of a single number.
        return np.array(values.transpose(self._torch_axes), order="C")

    def from_torch(self, values: Float[np.ndarray, "..."]) -> nnx.Variable:
        """A variable like its own that holds `values`, given in PyTorch's order."""
        values = values.transpose(np.argsort(self._torch_axes))
        return self.variable.replace(jnp.asarray(values, self.variable.get_value().dtype))

    @property
    def _torch_axes(self) -> tuple[int, ...]:
        """Which of our axes is PyTorch's first, second and so on."""
        axes = tuple(range(self.variable.get_value().ndim))
        if self.path[-1] != "kernel" or len(axes) < 2:
            return axes
        *window, inputs, outputs = axes
        return outputs, inputs, *window


def named_weights(*states: nnx.State) -> dict[str, Weight]:
    """The floating-point arrays in the states of a network, by name and sorted.

    Counters and random keys are no weights.

    Raises:
      UserError: two arrays would have the same name.
    """
    weights: dict[str, Weight] = {}
    for state in states:
        for path, variable in nnx.to_flat_state(state):
            if not jnp.issubdtype(variable.get_value().dtype, jnp.floating):
                continue
            weight = Weight(path, variable)
            if weight.name in weights:
                first, second = (".".join(map(str, w.path)) for w in (weights[weight.name], weight))
                raise UserError(
                    f"the network's {first} and {second} would both be '{weight.name}' in PyTorch"
                )
            weights[weight.name] = weight
    return dict(sorted(weights.items()))
