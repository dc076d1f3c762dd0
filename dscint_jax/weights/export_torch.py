"""Weights of a network as a PyTorch state dict in a .safetensors file.

In: a network's parameters and statistics. Out: arrays with PyTorch's names and order of axes, which
`import_torch` and, for networks that torchvision or timm have too, PyTorch load:

    model = torchvision.models.resnet18(num_classes=4)
    model.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    model.load_state_dict(safetensors.torch.load_file("resnet18.safetensors"))
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from flax import nnx

from dscint_jax.weights.torch_layout import named_weights
from tfds_builder.commandline.files import write_bytes

LENGTH_BYTES = 8
"""Of the little-endian number before a safetensors header; the header is padded to a multiple."""


def torch_state_dict(params: nnx.State, batch_stats: nnx.State) -> dict[str, np.ndarray]:
    """The weights of a network, float32, by their names in PyTorch and in its order of axes.

    Raises:
      UserError: two arrays of the network would have the same name.
    """
    return {n: weight.to_torch() for n, weight in named_weights(params, batch_stats).items()}


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a whole file or nothing; the same tensors and metadata give the same bytes.

    Raises:
      UserError: it cannot be written.
    """
    plain = safetensors.numpy.save(dict(tensors))
    end = LENGTH_BYTES + int.from_bytes(plain[:LENGTH_BYTES], "little")
    # The library itself would write the metadata's entries in an order drawn anew each time.
    header = {"__metadata__": dict(sorted(metadata.items()))}
    text = json.dumps(header | json.loads(plain[LENGTH_BYTES:end])).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    write_bytes(path, len(text).to_bytes(LENGTH_BYTES, "little") + text + plain[end:])
