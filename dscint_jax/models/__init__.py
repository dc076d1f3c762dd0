"""The registry of networks: `build(name, ...)` makes one, ready to train.

Every network is an `nnx.Module` called as `model(images, rngs=...)` on normalised images
(batch, height, width, channel); it returns float32 logits (batch, classes) and AttentionMaps.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from dscint_jax.errors import DscintError
from dscint_jax.models.attention import AttentionMaps
from dscint_jax.models.dscint import Dscint

NETWORKS: dict[str, Callable[..., nnx.Module]] = {
    "dscint": Dscint,
}

__all__ = ["NETWORKS", "AttentionMaps", "Dscint", "build"]


def build(
    name: str, *, num_classes: int, rngs: nnx.Rngs, options: Mapping[str, Any] | None = None
) -> nnx.Module:
    """Makes a network by name.

    Args:
      name: a key of NETWORKS.
      num_classes: outputs.
      rngs: the `params` stream initialises the weights.
      options: the network's own keyword arguments.

    Raises:
      DscintError: no such network, or no such option of it.
    """
    if name not in NETWORKS:
        raise DscintError(f"config.model '{name}' is not one of {', '.join(sorted(NETWORKS))}")
    network, options = NETWORKS[name], dict(options or {})
    # A module's class shows the signature of its metaclass; its options stand in __init__.
    signature = inspect.signature(network.__init__ if inspect.isclass(network) else network)
    known = [p for p in signature.parameters if p not in ("self", "num_classes", "rngs")]
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else f"; it has {', '.join(known)}"
            raise DscintError(f"config.model_options: {name} has no option '{option}'{hint}")
    return network(num_classes=num_classes, rngs=rngs, **options)
