"""Where the network looks: its attention, Grad-CAM, gradient x input, laid over the scintigram.

In: a trained network and indices of images. Out: the maps of each image, at the image's size.
"""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from dscint_jax.evaluate.restored import TrainedNetwork
from dscint_jax.input_pipeline import HostBatch
from dscint_jax.training.step import NetworkMaps

ATTENTION, GRAD_CAM, GRADIENT_INPUT = "attention", "grad_cam", "gradient_input"
METHODS = {
    ATTENTION: "attention",
    GRAD_CAM: "Grad-CAM",
    GRADIENT_INPUT: "gradient x input",
}
"""The maps, and what they are called in text."""


@dataclasses.dataclass(frozen=True)
class Explained:
    """One image, or one study, and what the network made of it.

    Attributes:
      views: normalised counts, sqrt(counts / scale), not clipped; one of an image, two of a study.
      probabilities: softmax.
      label: true class.
      view: which view it is, or which of them the study has: 'both' or the only one.
      target: the class that the maps but attention are of.
      maps: those that the network has, by METHODS, brought to the views' size: what
        `NetworkMaps` holds.
    """

    views: Float[np.ndarray, "view height width"]
    probabilities: Float[np.ndarray, " classes"]
    label: int
    view: str
    target: int
    maps: dict[str, Float[np.ndarray, "view height width"]]

    @functools.cached_property
    def heat(self) -> dict[str, Float[np.ndarray, "view height width"]]:
        """The maps in [0, 1], each stretched to its own range, which both views of a study share.

        One that is the same everywhere is 0.
        """
        return {name: _stretched(values) for name, values in self.maps.items()}


def explain(
    network: TrainedNetwork,
    indices: Int[np.ndarray, " image"],
    targets: Int[np.ndarray, " image"] | None = None,
) -> Iterator[Explained]:
    """Explains some images of the network's split, one batch ahead of what is asked for.

    Args:
      network: with the split.
      indices: of the images in the split, in any order.
      targets: the class that the maps of each are of; None: the true one.
    """
    size = network.batch_size

    def begun(start: int) -> tuple[int, HostBatch, Int[np.ndarray, " image"], NetworkMaps]:
        chosen = indices[start : start + size]
        batch = full_batch(network, chosen)
        target = batch["label"]
        if targets is not None:
            target = _filled(targets[start : start + size], network).astype(np.int32)
        return len(chosen), batch, target, network.maps(batch | {"label": target})

    # JAX computes in the background; what is asked of it first is done while we work.
    batches = map(begun, range(0, len(indices), size))
    ahead = next(batches, None)
    while ahead:
        (count, batch, target, found), ahead = ahead, next(batches, None)
        pixels = network.as_seen(batch)[..., 0]
        views = pixels.reshape(len(pixels), -1, *pixels.shape[-2:])
        maps = {name: _at_size(values, views.shape) for name, values in by_method(found).items()}
        for i in range(count):
            yield Explained(
                views=views[i],
                probabilities=np.asarray(found.probabilities)[i],
                label=int(batch["label"][i]),
                view=str(batch["view"][i]),
                target=int(target[i]),
                maps={name: values[i] for name, values in maps.items()},
            )


def full_batch(network: TrainedNetwork, chosen: Int[np.ndarray, " image"]) -> HostBatch:
    """Some images, no more than a batch, filled up with the first: steps take full batches."""
    return network.images.read(_filled(chosen, network))


def _filled(values: Int[np.ndarray, " value"], network: TrainedNetwork) -> np.ndarray:
    return np.concatenate([values, np.repeat(values[:1], network.batch_size - len(values))])


def resize(
    plane: Float[np.ndarray, "rows columns"], shape: tuple[int, int]
) -> Float[np.ndarray, "height width"]:
    """Bilinear resize of a map to an image's height and width."""
    image = Image.fromarray(np.asarray(plane, np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


def by_method(found: NetworkMaps) -> dict[str, np.ndarray]:
    """Maps on their own grids (batch, *view, rows, columns), by METHODS."""
    attention = found.attention.spatial
    maps = {
        # A part that JAX takes would wait for all that it was given to do before.
        ATTENTION: None if attention is None else np.asarray(attention)[..., 0],
        GRAD_CAM: found.grad_cam,
        GRADIENT_INPUT: found.gradient_input,
    }
    return {name: np.asarray(values) for name, values in maps.items() if values is not None}


def _at_size(
    maps: np.ndarray, shape: tuple[int, ...]
) -> Float[np.ndarray, "batch view height width"]:
    """Maps (batch, *view, rows, columns) as large as the views."""
    planes = maps.reshape(-1, *maps.shape[-2:])
    return np.stack([resize(plane, (shape[-2], shape[-1])) for plane in planes]).reshape(shape)


def _stretched(maps: Float[np.ndarray, "view height width"]) -> np.ndarray:
    span = np.ptp(maps)
    # What resizing makes of a constant map is constant but for rounding.
    if span <= 1e-6 * np.abs(maps).max():
        return np.zeros_like(maps)
    return (maps - maps.min()) / span
