"""The registry of networks: `build(name, ...)` makes one, ready to train.

Every network is an `nnx.Module`, called as `model(images, rngs=...)` on normalised images (batch,
height, width, channel), or (batch, view, height, width, channel) if its attribute `RECORDS` is
'studies'; it returns float32 logits (batch, classes). Those with attention also have
`attention_maps(images)`. A call is `feature_maps(images)`, the last maps, then
`classify(maps, images, rngs=...)`, their logits: Grad-CAM looks between the two. The networks that
can be an encoder have `num_features`, and no head where `num_classes` is 0.

All networks here take `num_classes` (outputs), `in_channels` (of the image), `dtype` (of the
computation; parameters and running statistics stay float32) and `rngs`, whose stream `params`
initialises the weights. Their classes explain the other options.

A network of your own needs no entry here: 'my_package.my_module:build' names a class or a function
with the keyword arguments `num_classes` and `rngs`, besides its own options, that returns such a
module. Dropout must draw from the `rngs` of the call: `layers.Dropout(rate)(x, rngs=rngs)`, which
draws the same on any number of devices, or `nnx.Dropout`, which draws on each device by itself. On
several devices each sees its own part of the batch; of what looks at other examples, only BatchNorm
(ours or `nnx.BatchNorm`) is told to look at all of them. One that reads studies has the attribute
`RECORDS = "studies"`.
"""

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from dscint_jax.config import with_tuples
from dscint_jax.models import densenet, resnet, vgg
from dscint_jax.models.alexnet import AlexNet
from dscint_jax.models.attention import AttentionMaps
from dscint_jax.models.dscint import Dscint
from dscint_jax.models.dual_view import DualView
from dscint_jax.models.inception_v4 import InceptionV4
from dscint_jax.models.options import OptionError, check_choice, check_size
from tfds_builder.commandline.errors import UserError

NETWORKS: dict[str, Callable[..., nnx.Module]] = {
    "dscint": Dscint,
    "alexnet": AlexNet,
    "vgg16": vgg.vgg16,
    "vgg16_bn": vgg.vgg16_bn,
    "vgg19": vgg.vgg19,
    "vgg19_bn": vgg.vgg19_bn,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "densenet121": densenet.densenet121,
    "densenet169": densenet.densenet169,
    "densenet201": densenet.densenet201,
    "inception_v4": InceptionV4,
    "dual_view": DualView,
}

DTYPES = ("float32", "bfloat16")

GIVEN = ("num_classes", "rngs")
"""Arguments that every network is given."""


def build(
    name: str,
    *,
    num_classes: int,
    rngs: nnx.Rngs,
    options: Mapping[str, Any] | None = None,
    field: str = "config.model_options",
) -> nnx.Module:
    """Makes a network by name.

    Args:
      name: a key of NETWORKS, or 'module:function' of a network of one's own.
      num_classes: outputs.
      rngs: the `params` stream initialises the weights.
      options: the network's own keyword arguments; `dtype` by its name, one of DTYPES.
      field: where the options stand, for messages.

    Raises:
      UserError: no such network, no such option of it, or not a network.
    """
    network = _find(name)
    plain: dict[str, Any] = with_tuples(options or {})
    _check_names(name, network, plain, field)
    try:
        if "dtype" in plain:
            check_choice("dtype", plain["dtype"], DTYPES)
            plain["dtype"] = jnp.dtype(plain["dtype"])
        if "in_channels" in plain:
            check_size("in_channels", plain["in_channels"])
        model = network(num_classes=num_classes, rngs=rngs, **plain)
    except OptionError as error:
        raise UserError(f"{field}.{error}") from error
    except UserError:
        raise
    # A user's own function may raise anything, and so may ours on an option of the wrong type.
    except Exception as error:
        raise UserError(
            f"config.model: {name} failed with its model_options ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(model, nnx.Module):
        raise UserError(
            f"config.model: {name} returned a {type(model).__name__}; it must be a flax.nnx.Module"
        )
    if not _takes_rngs(model):
        raise UserError(
            f"config.model: the network of {name} must be callable as model(images, rngs=...)"
        )
    return model


def complete_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with the network's defaults for those not given: what a run keeps of a network.

    Defaults that are no number, text, truth value, None or list of them are left out.
    """
    found = dict(options)
    for option, default in (_defaults_of(_find(name)) or {}).items():
        if option == "dtype":
            if default in (None, inspect.Parameter.empty):
                # The network leaves the type to its layers.
                continue
            default = jnp.dtype(default).name
        if isinstance(default, (str, int, float, bool, tuple, type(None))):
            found.setdefault(option, default)
    return found


def _check_names(
    name: str, network: Callable[..., object], options: Mapping[str, Any], field: str
) -> None:
    known = _defaults_of(network)
    for option in options:
        if option in GIVEN:
            raise UserError(f"{field}.{option} is no option: every network is given it")
        if known is not None and option not in known:
            close = difflib.get_close_matches(option, known, n=1)
            has = f"; it has {', '.join(known)}" if known else "; it has none"
            hint = f"; did you mean '{close[0]}'?" if close else has
            raise UserError(f"{field}: {name} has no option '{option}'{hint}")


def _takes_rngs(model: nnx.Module) -> bool:
    parameters = inspect.signature(type(model).__call__).parameters if callable(model) else {}
    return "rngs" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _find(name: str) -> Callable[..., object]:
    if name in NETWORKS:
        return NETWORKS[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise UserError(
            f"config.model '{name}' is not one of {', '.join(sorted(NETWORKS))}, and no "
            "'module:function' of your own"
        )
    try:
        module = importlib.import_module(module_name)
    # A user's own module may raise anything.
    except Exception as error:
        raise UserError(
            f"config.model '{name}': {module_name} cannot be imported "
            f"({type(error).__name__}: {error}); start in the folder that holds it"
        ) from error
    network = getattr(module, attribute, None)
    if not callable(network):
        raise UserError(f"config.model '{name}': {module_name} has no function '{attribute}'")
    return network


def _defaults_of(network: Callable[..., object]) -> dict[str, Any] | None:
    """A network's own keyword arguments with their defaults; None if it takes any."""
    bound = network.keywords if isinstance(network, functools.partial) else {}
    target = network.func if isinstance(network, functools.partial) else network
    # A module's class shows the signature of its metaclass; its options stand in __init__.
    try:
        signature = inspect.signature(target.__init__ if inspect.isclass(target) else target)
    except (TypeError, ValueError):
        # Written in C, it does not tell.
        return None
    parameters = signature.parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name: p.default for p in parameters if p.name not in ("self", *GIVEN, *bound)}
