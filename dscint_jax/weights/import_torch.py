"""Weights of PyTorch networks, read from files of safetensors or of torch.save into networks here.

    network = models.build("resnet18", num_classes=4, rngs=nnx.Rngs(params=0))
    print(import_weights(Path("resnet18.safetensors"), network))

In: weights of torchvision (ResNet, DenseNet, VGG, AlexNet), timm (Inception-v4), torchxrayvision or
MONAI, alone or within what trained them, or a file of `dscint_jax.export`. Out: the same weights in
the network, and a report of what was left. A network of one's own is served too, if its submodules
have the names of the file. Two attributes of its class then say where the first convolution and the
last layer are, as 'conv1' and 'fc': STEM, for files of colour pictures, and HEAD, for files with
another head or none.
"""

import argparse
import dataclasses
import functools
import hashlib
import io
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx

from dscint_jax.weights.torch_layout import Weight, named_weights
from tfds_builder.commandline.errors import UserError

Tensors = dict[str, Any]
"""Arrays of NumPy or PyTorch, by name; what is looked at is their shape until they are taken."""

SAFETENSORS = ".safetensors"

SAFETENSORS_FLOATS: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}

TORCH_SAVE = (b"PK", b"\x80")
"""How files of torch.save begin: an archive; before PyTorch 1.6, a pickle."""

SPELLINGS = (
    # torchvision's DenseNet files are older than its classes; MONAI's have a submodule more.
    (r"\b(denselayer\d+)\.(?:layers\.)?(norm|relu|conv)\.?([12])\.", r"\1.\2\3."),
    # timm's VGG has its fully connected layers as convolutions over the last map.
    (r"^pre_logits\.fc1\.", "classifier.0."),
    (r"^pre_logits\.fc2\.", "classifier.3."),
    (r"^head\.fc\.", "classifier.6."),
    # nn.Sequential(*network.children()) has the layers by their places.
    (r"^0\.", "features."),
    (r"^0\.", "conv1."),
    (r"^1\.", "bn1."),
    *((rf"^{n + 3}\.", f"layer{n}.") for n in range(1, 5)),
)
"""Names under which the same layers also come: pattern and replacement."""

AVERAGE = r"(?:^|[._])(?:ema|k|momentum|teacher|target)[._]"
"""Prefixes of a running mean that is kept beside the network: MoCo's encoder_k, model_ema."""

DEEPEST = 8
COLOURS = 3
NAMED_AT_MOST = 3
OLDEST_TORCH = (2, 10)


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """What was taken from a file; `str` of it is one line.

    Attributes:
      file: the file's name, without its folder.
      sha256: of the file.
      network: what it was loaded into.
      loaded: arrays of the network that the file gave.
      folded: the convolution whose kernel was summed over a file's three colours; '' if none was.
      head_classes: the file's number of classes, where it is not the network's and the head
        therefore stays as it was; 0 where the file's head was loaded, is of another kind or absent.
      fresh: layers of the network that stay as they were.
      left_out: layers of the file that the network has no use for.
      prefix: what stands before the network's names in the file.
    """

    file: str
    sha256: str
    network: str
    loaded: int
    folded: str = ""
    head_classes: int = 0
    fresh: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    prefix: str = ""

    def __str__(self) -> str:
        parts = [f"{self.file}: {self.loaded} tensors loaded into {self.network}"]
        if self.prefix:
            parts.append(f"found under '{self.prefix}'")
        if self.folded:
            parts.append(f"{self.folded} summed over {COLOURS} colours")
        if self.fresh:
            verb = "starts" if len(self.fresh) == 1 else "start"
            why = f", as the file has {self.head_classes} classes" if self.head_classes else ""
            parts.append(f"{', '.join(self.fresh)} {verb} anew{why}")
        if self.left_out:
            parts.append(f"{_first_few(self.left_out)} of the file left out")
        return "; ".join(parts)


def import_weights(path: Path, network: nnx.Module, *, name: str = "") -> ImportReport:
    """Loads a file's weights and BatchNorm statistics into a network, in place.

    The network's arrays may stand under any prefix. A head that is missing, or of another shape,
    stays as it is. A stem for three colours, loaded into a network of one channel, is summed over
    them: the answer is the same as to a grey picture in all three. A network with an encoder also
    takes a file of the encoder's network, into that alone.

    Args:
      path: a file of safetensors, or one of torch.save, which needs PyTorch.
      network: as `models.build` returns it.
      name: what messages call the network; by default its class.

    Raises:
      UserError: the file cannot be read, needs a PyTorch that is not there, or does not have the
        network but for its head, in finite numbers; the network is then unchanged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing; it was to give the weights") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    tensors = _read_tensors(path, data)
    target, prefix, names = _find(tensors, _targets(network, name or type(network).__name__), path)
    head = [n for n in target.weights if target.is_of_head(n)]
    head_fits = all(n in names and target.fits(n, tensors[names[n]]) for n in head)
    wanted = [n for n in target.weights if head_fits or n not in head]
    _check_fit(path, tensors, target, prefix, names, wanted)
    arrays = {n: _finite(path, names[n], tensors[names[n]]) for n in wanted}
    nnx.update(target.network, nnx.from_flat_state([target.variable(n, arrays[n]) for n in wanted]))
    head_classes = 0 if head_fits else _classes(tensors, target, names)
    spoken_of = {names[n] for n in names if n in wanted or head_classes}
    return ImportReport(
        file=path.name,
        sha256=hashlib.sha256(data).hexdigest(),
        network=target.name,
        loaded=len(wanted),
        folded=target.stem if any(target.folds(n, tensors[names[n]]) for n in wanted) else "",
        head_classes=head_classes,
        fresh=(() if head_fits else (target.head,)) + target.outside,
        left_out=_layers(_beside(n, prefix) for n in tensors.keys() - spoken_of),
        prefix=prefix,
    )


def _read_tensors(path: Path, data: bytes) -> Tensors:
    """The floating-point tensors of a file by name, nested dicts joined by dots.

    Whole numbers are never weights, but counters and places in a queue: they are passed over. What
    the file is, its beginning says, as training scripts agree on no suffix.
    """
    # A header of JSON after its length, which may begin with any byte.
    if data[8:9] == b"{":
        tensors = _read_safetensors(path, data)
    elif data.startswith(TORCH_SAVE):
        tensors = _read_pickle(path, data)
    else:
        raise UserError(f"{path} is damaged, or no file of safetensors or of torch.save")
    if not tensors:
        raise UserError(f"{path} holds no floating-point tensors")
    return dict(sorted(tensors.items()))


def _read_safetensors(path: Path, data: bytes) -> Tensors:
    try:
        entries = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged, or no safetensors file ({error})") from error
    return {
        name: np.frombuffer(entry["data"], SAFETENSORS_FLOATS[entry["dtype"]]).reshape(
            entry["shape"]
        )
        for name, entry in entries
        if entry["dtype"] in SAFETENSORS_FLOATS
    }


def _read_pickle(path: Path, data: bytes) -> Tensors:
    torch = _import_torch(path)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            # Many a script saves its arguments too, and a Namespace runs nothing.
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            # weights_only: a pickle may hold code, which this refuses to run.
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    # What is damaged may fail anywhere within PyTorch.
    except Exception as error:
        raise UserError(_unreadable_pickle(path, str(error))) from error
    if not isinstance(loaded, Mapping):
        raise UserError(
            f"{path} holds a {type(loaded).__name__}, not a state dict; save model.state_dict()"
        )
    tensors, seen, level = {}, set(), {"": loaded}
    # Not without end: a hostile file may hold itself.
    for _ in range(DEEPEST):
        mappings = {n: m for n, m in level.items() if isinstance(m, Mapping) and id(m) not in seen}
        seen |= {id(mapping) for mapping in mappings.values()}
        level = {
            f"{name}.{key}" if name else str(key): value
            for name, mapping in mappings.items()
            for key, value in mapping.items()
        }
        tensors |= {
            name: value
            for name, value in level.items()
            if isinstance(value, torch.Tensor) and value.is_floating_point()
        }
    return tensors


def _import_torch(path: Path) -> Any:
    remedy = (
        f"to read {path}, install PyTorch {'.'.join(map(str, OLDEST_TORCH))} or newer (pip install "
        f"-c constraints.txt '.[peers]'), or convert the file to {SAFETENSORS}"
    )
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(f"PyTorch is not installed; {remedy}") from None
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    # Before 2.10 even `weights_only` could be made to run code.
    if version < OLDEST_TORCH:
        raise UserError(f"PyTorch {torch.__version__} is too old; {remedy}")
    return torch


def _unreadable_pickle(path: Path, reason: str) -> str:
    if held := re.search(r"GLOBAL (\S+)", reason):
        return (
            f"{path} holds more than tensors ({held[1]}), and to read that could run code; save "
            f"model.state_dict() alone"
        )
    if "TorchScript" in reason:
        return f"{path} is a TorchScript program, not a state dict; save model.state_dict()"
    return f"{path} is damaged, or no file of torch.save"


@dataclasses.dataclass(frozen=True)
class _Target:
    """What is looked for in a file: the network to load into, or its encoder.

    Attributes:
      network: the module.
      name: what messages call it.
      outside: layers of the whole network that are not of its encoder.
    """

    network: nnx.Module
    name: str
    outside: tuple[str, ...] = ()

    @functools.cached_property
    def weights(self) -> dict[str, Weight]:
        """Its arrays, by the names that they have in PyTorch."""
        return named_weights(nnx.state(self.network))

    @property
    def stem(self) -> str:
        """Path of the first convolution; '' if not known."""
        return getattr(self.network, "STEM", "")

    @property
    def head(self) -> str:
        """Path of the last layer; '' if not known."""
        return getattr(self.network, "HEAD", "")

    @functools.cached_property
    def body(self) -> frozenset[str]:
        """Names of all arrays but the head's; of all, where there are no others."""
        return frozenset(n for n in self.weights if not self.is_of_head(n)) or frozenset(
            self.weights
        )

    def is_of_head(self, name: str) -> bool:
        """Whether an array is of the last layer, or of what stands in its place."""
        return name.startswith(f"{self.head}.")

    @functools.cached_property
    def layers(self) -> frozenset[str]:
        """Submodules whose arrays a file may not have otherwise; built without, too."""
        built = {name for name, value in vars(self.network).items() if value is not None}
        has_head = not self.head or _first_part(self.head) in built
        return frozenset(vars(self.network) if has_head else built)

    def our_name(self, name: str) -> str | None:
        """The name of the array that a file calls so; None if there is none."""
        return next((n for n in _spellings(name) if n in self.weights), None)

    def contradicts(self, name: str) -> bool:
        """Whether a file that has this array, too, is of a network with other layers."""
        return any(
            _first_part(n) in self.layers and not self.is_of_head(n) for n in _spellings(name)
        )

    def folds(self, name: str, tensor: Any) -> bool:
        """Whether the array is a stem for one colour, and the tensor the same for three."""
        own, given = self.weights[name].shape, tuple(tensor.shape)
        return (
            name == f"{self.stem}.weight"
            # What is standardised after the sum is not the sum of what was standardised.
            and f"{self.stem}.gain" not in self.weights
            and len(own) == 4
            and own[1] == 1
            and given == (own[0], COLOURS, *own[2:])
        )

    def fits(self, name: str, tensor: Any) -> bool:
        """Whether a tensor has an array's shape, or one that can be brought into it."""
        own, given = self.weights[name].shape, tuple(tensor.shape)
        # A convolution as large as its map is a linear layer.
        linear = len(own) == 2 and len(given) == 4 and (given[0], math.prod(given[1:])) == own
        return given == own or linear or self.folds(name, tensor)

    def variable(self, name: str, values: np.ndarray) -> tuple[tuple, nnx.Variable]:
        """An array's place and the variable for it, from values that fit."""
        weight = self.weights[name]
        if self.folds(name, values):
            values = values.sum(1)
        return weight.path, weight.from_torch(values.reshape(weight.shape))


def _targets(network: nnx.Module, name: str) -> list[_Target]:
    """The network and, where it has one, its encoder."""
    targets = [_Target(network, name)]
    encoder = getattr(network, "encoder", None)
    if isinstance(encoder, nnx.Module):
        outside = _layers(n for n in targets[0].weights if not n.startswith("encoder."))
        targets.append(_Target(encoder, f"the encoder of {name}", outside))
    return targets


def _find(
    tensors: Tensors, targets: list[_Target], path: Path
) -> tuple[_Target, str, dict[str, str]]:
    """The first target that is in the file, under which prefix, and the file's names by ours.

    Where none is whole, the prefix of the last that has most of it.
    """
    for target in targets:
        names = _names(tensors, target)
        whole = [p for p, found in names.items() if found.keys() >= target.body]
        if whole:
            break
    else:
        target = targets[-1]
        names = _names(tensors, target)
        prefix = max(names, key=lambda p: len(names[p]), default="")
        return target, prefix, names.get(prefix, {})
    for holds in (
        lambda p: all(target.fits(n, tensors[names[p][n]]) for n in target.body),
        lambda p: not re.search(AVERAGE, p),
    ):
        whole = [p for p in whole if holds(p)] or whole
    if len(whole) > 1:
        raise UserError(
            f"{path} holds {target.name} {len(whole)} times, under {_first_few(whole)}; "
            f"save the state dict of one"
        )
    return target, whole[0], names[whole[0]]


def _names(tensors: Tensors, target: _Target) -> dict[str, dict[str, str]]:
    """The file's names of a target's arrays, by prefix and by our name."""
    names: dict[str, dict[str, str]] = {}
    for name in tensors:
        parts = name.split(".", DEEPEST)
        for i in range(len(parts)):
            rest = ".".join(parts[i:])
            if ours := target.our_name(rest):
                names.setdefault(name.removesuffix(rest), {}).setdefault(ours, name)
    return names


def _spellings(name: str) -> Iterable[str]:
    others = (re.sub(pattern, replacement, name) for pattern, replacement in SPELLINGS)
    return dict.fromkeys((name, *others))


def _classes(tensors: Tensors, target: _Target, names: Mapping[str, str]) -> int:
    """How many classes a file's head has, where it is like the network's but for that; else 0."""
    name = f"{target.head}.weight"
    if name not in names or name not in target.weights:
        return 0
    own, given = target.weights[name].shape, tuple(tensors[names[name]].shape)
    return given[0] if len(given) > 1 and math.prod(given[1:]) == own[1] else 0


def _check_fit(
    path: Path,
    tensors: Tensors,
    target: _Target,
    prefix: str,
    names: Mapping[str, str],
    wanted: list[str],
) -> None:
    """Raises UserError of what the file lacks, has otherwise, or has more in the same layers."""
    under = [n for n in tensors if n.startswith(prefix) and n not in names.values()]
    faults = {
        "of another shape": [
            f"{n} {tuple(tensors[names[n]].shape)} for {target.weights[n].shape}"
            for n in wanted
            if n in names and not target.fits(n, tensors[names[n]])
        ],
        "not in the file as floating-point numbers": [n for n in wanted if n not in names],
        "not in the network": [n for n in under if target.contradicts(n.removeprefix(prefix))],
    }
    found = [f"{fault}: {_first_few(given)}" for fault, given in faults.items() if given]
    if found:
        raise UserError(f"{path} does not fit {target.name}; {'; '.join(found)}")


def _finite(path: Path, name: str, tensor: Any) -> np.ndarray:
    """A tensor as float32."""
    try:
        values = tensor if isinstance(tensor, np.ndarray) else tensor.detach().float().numpy()
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{path}: tensor {_shown(name)} is not a plain one ({error})") from error
    # What float32 cannot hold becomes infinite.
    with np.errstate(over="ignore"):
        values = values.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise UserError(f"{path}: tensor {_shown(name)} holds values that are not finite")
    if name.endswith("running_var") and (values < 0).any():
        raise UserError(f"{path}: tensor {_shown(name)} holds negative variances")
    return values


def _beside(name: str, prefix: str) -> str:
    """A name from where it leaves the prefix."""
    while not name.startswith(prefix):
        prefix = prefix[: prefix.rfind(".", 0, -1) + 1]
    return name.removeprefix(prefix)


def _first_few(names: Sequence[str]) -> str:
    more = len(names) - NAMED_AT_MOST
    shown = (name if name.isprintable() else repr(name) for name in names[:NAMED_AT_MOST])
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _layers(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({_first_part(name) for name in names}))


def _shown(name: str) -> str:
    """A name in quotes; what a terminal would obey is escaped."""
    return f"'{name}'" if name.isprintable() else repr(name)


def _first_part(name: str) -> str:
    return name.partition(".")[0]
