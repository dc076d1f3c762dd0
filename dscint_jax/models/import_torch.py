"""Weights of PyTorch networks, read from .safetensors, .pth and .pt files into networks here.

    from dscint_jax.models import build, import_torch
    network = build("resnet18", num_classes=4, rngs=nnx.Rngs(params=0))
    print(import_torch.import_weights(Path("resnet18.safetensors"), network))

In: a state dict of torchvision (ResNet, DenseNet, VGG, AlexNet) or timm (Inception-v4), or a file
of `dscint_jax.export`. Out: the same weights in the network; a file that does not fit is refused as
a whole. A network of one's own is served too, if its submodules have the names of the file. Two
attributes of its class then say where the first convolution and the last layer are, as 'conv1' and
'fc': STEM, for files of colour pictures, and HEAD, for files with other classes.
"""

import dataclasses
import hashlib
import io
import math
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx

from dscint_jax.errors import DscintError
from dscint_jax.models.torch_layout import Weight, named_weights

StateDict = dict[str, np.ndarray]

SAFETENSORS, PICKLES = ".safetensors", (".pth", ".pt")

SAFETENSORS_FLOATS: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}

NESTED_UNDER = ("state_dict", "model_state_dict", "model_state", "model")
"""Where training scripts keep the network's state dict among optimiser state and the like."""

WRAPPERS = ("module.", "_orig_mod.", "model.")
"""Prefixes that DataParallel, torch.compile and Lightning put before every name."""

SPELLINGS = (
    # torchvision's DenseNet files are older than its classes.
    (r"\b(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2."),
    # timm's VGG has its fully connected layers as convolutions over the last map.
    (r"^pre_logits\.fc1\.", "classifier.0."),
    (r"^pre_logits\.fc2\.", "classifier.3."),
    (r"^head\.fc\.", "classifier.6."),
)
"""Names under which the same layers also come: pattern and replacement."""

COUNTER = "num_batches_tracked"
"""BatchNorm's count of batches, which PyTorch keeps and nothing here uses."""

COLOURS = 3
NAMED_AT_MOST = 3
OLDEST_TORCH = (2, 6)


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
        therefore stays as it was; 0 where the file's head was loaded, or left out.
      fresh: layers of the network that stay as they were.
      left_out: layers of the file that the network does not have because it has no head.
    """

    file: str
    sha256: str
    network: str
    loaded: int
    folded: str = ""
    head_classes: int = 0
    fresh: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.file}: {self.loaded} tensors loaded into {self.network}"]
        if self.folded:
            parts.append(f"{self.folded} summed over {COLOURS} colours")
        if self.head_classes:
            parts.append(
                f"{self.fresh[0]} starts anew, as the file has {self.head_classes} classes"
            )
        elif self.fresh:
            parts.append(f"{', '.join(self.fresh)} start anew")
        if self.left_out:
            parts.append(f"{', '.join(self.left_out)} of the file left out")
        return "; ".join(parts)


def import_weights(path: Path, network: nnx.Module, *, name: str = "") -> ImportReport:
    """Loads a file's weights and BatchNorm statistics into a network, in place.

    A head of another number of classes stays as it is. A stem for three colours, loaded into a
    network of one channel, is summed over them: the answer is the same as to a grey picture in all
    three. A network with an encoder also takes a file of the encoder's network, into that alone.

    Args:
      path: a .safetensors, .pth or .pt file; the latter two need PyTorch.
      network: as `models.build` returns it.
      name: what messages call the network; by default its class.

    Raises:
      DscintError: the file cannot be read, holds anything but finite numbers, or does not fit; the
        network is then unchanged.
    """
    data = _read_bytes(path)
    tensors = read_state_dict(path, data)
    target = _target(network, tensors, name or type(network).__name__)
    tensors = _renamed(tensors, target, path)
    tensors, left_out = _without_left_out(tensors, target)
    head_classes = _other_classes(tensors, target)
    head = target.names_under(target.head) if head_classes else []
    tensors = {n: t for n, t in tensors.items() if n not in head}
    wanted = {n: w for n, w in target.weights.items() if n not in head}
    tensors, folded = _fitted(tensors, wanted, target.stem)
    _check_fit(tensors, wanted, f"{path} does not fit {target.name}")
    nnx.update(
        network,
        nnx.from_flat_state([(w.path, w.from_torch(tensors[n])) for n, w in wanted.items()]),
    )
    return ImportReport(
        file=path.name,
        sha256=hashlib.sha256(data).hexdigest(),
        network=target.name,
        loaded=len(wanted),
        folded=target.stem if folded else "",
        head_classes=head_classes,
        fresh=(target.head,) if head_classes else target.outside,
        left_out=left_out,
    )


def read_state_dict(path: Path, data: bytes) -> StateDict:
    """The floating-point tensors of a file, float32, by name.

    Args:
      path: of the file; its suffix says what it is.
      data: what is in it.

    Raises:
      DscintError: it is damaged, of another kind, or holds anything but finite numbers; or it needs
        a PyTorch that is not there.
    """
    read = _read_safetensors if path.suffix.lower() == SAFETENSORS else _read_pickle
    tensors = read(path, data)
    if not tensors:
        raise DscintError(f"{path} holds no tensors")
    # What float32 cannot hold becomes infinite, which is found below.
    with np.errstate(over="ignore"):
        tensors = {n: tensors[n].astype(np.float32, copy=False) for n in sorted(tensors)}
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            raise DscintError(f"{path}: tensor {_shown(name)} holds values that are not finite")
        if name.endswith("running_var") and (values < 0).any():
            raise DscintError(f"{path}: tensor {_shown(name)} holds negative variances")
    return tensors


def _read_bytes(path: Path) -> bytes:
    if path.suffix.lower() not in (SAFETENSORS, *PICKLES):
        raise DscintError(
            f"{path} is no file of weights by its name; use {SAFETENSORS} or {' or '.join(PICKLES)}"
        )
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DscintError(f"{path} is missing; it was to give the weights") from None
    except OSError as error:
        raise DscintError(f"{path} cannot be read: {error.strerror}") from error


def _read_safetensors(path: Path, data: bytes) -> StateDict:
    try:
        entries = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise DscintError(f"{path} is damaged, or no safetensors file ({error})") from error
    tensors = {}
    for name, entry in entries:
        if _is_counter(name):
            continue
        if entry["dtype"] not in SAFETENSORS_FLOATS:
            raise DscintError(_not_floating(path, name, entry["dtype"]))
        values = np.frombuffer(entry["data"], SAFETENSORS_FLOATS[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def _read_pickle(path: Path, data: bytes) -> StateDict:
    torch = _import_torch(path)
    try:
        with warnings.catch_warnings(action="ignore"):
            # weights_only: a pickle may hold code, which this refuses to run.
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    # What is damaged may fail anywhere within PyTorch.
    except Exception as error:
        raise DscintError(_unreadable_pickle(path, str(error))) from error
    loaded = _unnested(loaded)
    if not isinstance(loaded, Mapping):
        raise DscintError(
            f"{path} holds a {type(loaded).__name__}, not a state dict; save model.state_dict()"
        )
    tensors = {}
    for name, tensor in loaded.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise DscintError(
                f"{path}: entry {name!r} is a {type(tensor).__name__}, where a state dict has "
                f"tensors by name; save model.state_dict()"
            )
        if _is_counter(name):
            continue
        if not tensor.is_floating_point():
            raise DscintError(_not_floating(path, name, str(tensor.dtype)))
        _check_storage(path, name, tensor)
        try:
            tensors[name] = tensor.detach().to(torch.float32).numpy()
        except (RuntimeError, TypeError) as error:
            raise DscintError(
                f"{path}: tensor {_shown(name)} is not a plain one ({error})"
            ) from error
    return tensors


def _check_storage(path: Path, name: str, tensor: Any) -> None:
    """Raises DscintError of a tensor that repeats few stored numbers, maybe beyond all memory."""
    try:
        stored = tensor.untyped_storage().nbytes()
    except RuntimeError:
        # Sparse tensors and the like have none; they are refused as they are converted.
        return
    if tensor.numel() * tensor.element_size() > stored:
        raise DscintError(
            f"{path}: tensor {_shown(name)} of shape {tuple(tensor.shape)} repeats fewer stored "
            f"numbers; save tensor.contiguous()"
        )


def _import_torch(path: Path) -> Any:
    remedy = (
        f"to read {path}, install PyTorch {'.'.join(map(str, OLDEST_TORCH))} or newer (pip install "
        f"-c constraints.txt '.[peers]'), or convert the file to {SAFETENSORS}"
    )
    try:
        import torch
    except ImportError:
        raise DscintError(f"PyTorch is not installed; {remedy}") from None
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    # Before 2.6 even `weights_only` could be made to run code (CVE-2025-32434).
    if version < OLDEST_TORCH:
        raise DscintError(f"PyTorch {torch.__version__} is too old; {remedy}")
    return torch


def _unreadable_pickle(path: Path, reason: str) -> str:
    held = re.search(r"GLOBAL (\S+)", reason)
    if held:
        return (
            f"{path} holds more than tensors ({held[1]}), and to read that could run code; save "
            f"model.state_dict() alone"
        )
    if "TorchScript" in reason:
        return f"{path} is a TorchScript program, not a state dict; save model.state_dict()"
    return f"{path} is damaged, or no file of torch.save"


def _unnested(loaded: Any) -> Any:
    # No deeper: a hostile file may nest without end.
    for _ in NESTED_UNDER:
        if not isinstance(loaded, Mapping):
            break
        inner = [loaded[n] for n in NESTED_UNDER if isinstance(loaded.get(n), Mapping)]
        if not inner:
            break
        loaded = inner[0]
    return loaded


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == COUNTER


def _not_floating(path: Path, name: str, kind: str) -> str:
    return (
        f"{path}: tensor {_shown(name)} is of type {kind}; weights must be floating-point numbers "
        f"of 16, 32 or 64 bits"
    )


@dataclasses.dataclass(frozen=True)
class _Target:
    """The network that a file is of: the one to load into, or its encoder.

    Attributes:
      name: what messages call it.
      weights: its arrays, by the names that they have in the file.
      stem: path of the first convolution; '' if not known.
      head: path of the last layer; '' if not known.
      without_head: layers that it does not have because it was built without a head.
      outside: layers of the network that are not of its encoder.
    """

    name: str
    weights: dict[str, Weight]
    stem: str
    head: str
    without_head: frozenset[str] = frozenset()
    outside: tuple[str, ...] = ()

    def names_under(self, layer: str) -> list[str]:
        """Names of a layer's arrays."""
        return [name for name in self.weights if name.startswith(f"{layer}.")]

    def lacks(self, name: str) -> bool:
        """Whether a tensor of the file belongs to a layer of `without_head`."""
        return _first_part(name) in self.without_head


def _target(network: nnx.Module, tensors: StateDict, name: str) -> _Target:
    weights = named_weights(nnx.state(network))
    prefix, outside = "encoder.", ()
    encoder = getattr(network, "encoder", None)
    if isinstance(encoder, nnx.Module) and not any(prefix in n for n in tensors):
        outside = _layers(n for n in weights if not n.startswith(prefix))
        weights = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
        network, name = encoder, f"the encoder of {name}"
    head = getattr(network, "HEAD", "")
    has_no_head = head and getattr(network, _first_part(head), None) is None
    absent = [layer for layer, value in vars(network).items() if value is None]
    return _Target(
        name=name,
        weights=weights,
        stem=getattr(network, "STEM", ""),
        head=head,
        without_head=frozenset(absent if has_no_head else ()),
        outside=outside,
    )


def _renamed(tensors: StateDict, target: _Target, path: Path) -> StateDict:
    """The tensors by the names that the network has for them, as far as it has any."""
    prefix = _wrapper(tensors, target)
    renamed: StateDict = {}
    for name, values in tensors.items():
        ours = _our_name(name.removeprefix(prefix), target)
        if ours in renamed:
            raise DscintError(f"{path} holds {_shown(ours)} twice, under two spellings")
        renamed[ours] = values
    return renamed


def _wrapper(tensors: StateDict, target: _Target) -> str:
    """What stands before all names of a file, put there by what wrapped its network.

    A network may itself have a submodule called 'model': what leaves most names that the network
    knows is the wrapper; of equals, the longest.
    """
    prefixes = [""]
    for _ in WRAPPERS:
        longer = (prefixes[-1] + wrapper for wrapper in WRAPPERS)
        prefixes += [p for p in longer if _all_under(p, tensors)][:1]

    def known(prefix: str) -> int:
        return sum(_our_name(n.removeprefix(prefix), target) in target.weights for n in tensors)

    return max(reversed(prefixes), key=known)


def _all_under(prefix: str, names: Collection[str]) -> bool:
    return all(name.startswith(prefix) for name in names)


def _our_name(name: str, target: _Target) -> str:
    if name in target.weights:
        return name
    for pattern, replacement in SPELLINGS:
        ours = re.sub(pattern, replacement, name)
        if ours in target.weights or (ours != name and target.lacks(ours)):
            return ours
    return name


def _without_left_out(tensors: StateDict, target: _Target) -> tuple[StateDict, tuple[str, ...]]:
    """The tensors that a network without a head needs, and the layers of the others."""
    left_out = _layers(name for name in tensors if target.lacks(name))
    return {name: t for name, t in tensors.items() if not target.lacks(name)}, left_out


def _other_classes(tensors: StateDict, target: _Target) -> int:
    """How many classes a file's head has, where it is like the network's but for that; else 0."""
    name = f"{target.head}.weight"
    if name not in tensors or name not in target.weights:
        return 0
    own = target.weights[name].shape
    given = _as_linear(tensors[name], own).shape
    return given[0] if given[1:] == own[1:] and given[:1] != own[:1] else 0


def _fitted(tensors: StateDict, wanted: Mapping[str, Weight], stem: str) -> tuple[StateDict, bool]:
    """The tensors in the network's shapes where there is a way, and whether the stem was folded."""
    fitted = {
        name: _as_linear(values, wanted[name].shape) if name in wanted else values
        for name, values in tensors.items()
    }
    name = f"{stem}.weight"
    folds = (
        name in fitted
        and name in wanted
        # What is standardised after the sum is not the sum of what was standardised.
        and f"{stem}.gain" not in wanted
        and fitted[name].ndim == 4
        and (fitted[name].shape[1], wanted[name].shape[1]) == (COLOURS, 1)
    )
    if folds:
        fitted[name] = fitted[name].sum(1, keepdims=True)
    return fitted, folds


def _as_linear(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A convolution as large as its map, as the linear layer that it is; others as they are."""
    if len(shape) == 2 and values.ndim == 4 and math.prod(values.shape[1:]) == shape[1]:
        return values.reshape(len(values), -1)
    return values


def _check_fit(tensors: StateDict, wanted: Mapping[str, Weight], message: str) -> None:
    """Raises DscintError unless names and shapes are the same."""
    shapes = [
        f"{name} {tensors[name].shape} for {weight.shape}"
        for name, weight in wanted.items()
        if name in tensors and tensors[name].shape != weight.shape
    ]
    faults = {
        "of another shape": shapes,
        "not in the file": [name for name in wanted if name not in tensors],
        "not in the network": [name for name in tensors if name not in wanted],
    }
    found = [f"{fault}: {_first_few(names)}" for fault, names in faults.items() if names]
    if found:
        raise DscintError(f"{message}; {'; '.join(found)}")


def _first_few(names: list[str]) -> str:
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
