"""Where the network looks: its spatial attention and Grad-CAM, laid over the scintigram.

In: a trained network and indices of images. Out: both maps of each image, at the image's size.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from dscint_jax.evaluate.restored import TrainedNetwork
from dscint_jax.input_pipeline import HostBatch

TRUE, PREDICTED = "true", "predicted"
"""The classes of an image that Grad-CAM may be of: its own, or the one that the network reads."""

ATTENTION, GRAD_CAM = "attention", "grad_cam"
METHODS = {ATTENTION: "attention", GRAD_CAM: "Grad-CAM"}
"""The maps, and what they are called in text."""


@dataclasses.dataclass(frozen=True)
class Explained:
    """One image, or one study, and what the network made of it.

    Attributes:
      views: normalised counts, sqrt(counts / scale), not clipped; one of an image, two of a study.
      attention: what `AttentionMaps.spatial` holds, brought to the views' size; None of a network
        without it.
      probabilities: softmax.
      label: true class.
      view: which view it is, or which of them the study has: 'both' or the only one.
      grad_cam: what speaks for the class `target`, at least 0, brought to the views' size; None of
        a network that cannot be taken apart, see `TrainedNetwork.grad_cam`.
      target: the class that Grad-CAM is of.
    """

    views: Float[np.ndarray, "view height width"]
    attention: Float[np.ndarray, "view height width"] | None
    probabilities: Float[np.ndarray, " classes"]
    label: int
    view: str
    grad_cam: Float[np.ndarray, "view height width"] | None = None
    target: int | None = None

    @property
    def heat(self) -> dict[str, Float[np.ndarray, "view height width"]]:
        """The maps in [0, 1], by METHODS; those that the network has.

        Each is stretched to its own range, which both views of a study share. One that is the same
        everywhere is 0.
        """
        maps = {ATTENTION: self.attention, GRAD_CAM: self.grad_cam}
        return {name: _stretched(values) for name, values in maps.items() if values is not None}


def explain(
    network: TrainedNetwork, indices: Int[np.ndarray, " image"], *, of: str = PREDICTED
) -> list[Explained]:
    """Explains some images of the network's split.

    `heat` of what is returned has the maps of both methods in [0, 1], (view, height, width): the
    spatial attention where the network has it, Grad-CAM of every registered network.

    Args:
      network: with the split.
      indices: of the images in the split, in any order.
      of: the class that Grad-CAM is of, PREDICTED or TRUE.
    """
    explained = []
    for start in range(0, len(indices), network.batch_size):
        chosen = np.asarray(indices[start : start + network.batch_size])
        explained += _explain_batch(network, full_batch(network, chosen), of)[: len(chosen)]
    return explained


def full_batch(network: TrainedNetwork, chosen: Int[np.ndarray, " image"]) -> HostBatch:
    """Some images, no more than a batch, filled up with the first: steps take full batches."""
    filled = np.concatenate([chosen, np.repeat(chosen[:1], network.batch_size - len(chosen))])
    return network.images.read(filled)


def resize(
    plane: Float[np.ndarray, "rows columns"], shape: tuple[int, int]
) -> Float[np.ndarray, "height width"]:
    """Bilinear resize of a map to an image's height and width."""
    image = Image.fromarray(np.asarray(plane, np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


def _explain_batch(network: TrainedNetwork, batch: HostBatch, of: str) -> list[Explained]:
    result, attention = network.evaluate(batch), network.attention(batch).spatial
    predicted = np.asarray(result.predicted, np.int32)
    target = batch["label"] if of == TRUE else predicted
    grad_cam = network.grad_cam(batch | {"label": target})
    pixels = network.as_seen(batch)[..., 0]
    views = pixels.reshape(len(pixels), -1, *pixels.shape[-2:])
    maps = [
        _at_size(values, views.shape)
        for values in (None if attention is None else attention[..., 0], grad_cam)
    ]
    return [
        Explained(
            views=views[i],
            attention=None if maps[0] is None else maps[0][i],
            probabilities=np.asarray(result.probabilities)[i],
            label=int(batch["label"][i]),
            view=str(batch["view"][i]),
            grad_cam=None if maps[1] is None else maps[1][i],
            target=int(target[i]),
        )
        for i in range(len(views))
    ]


def _at_size(maps: object, shape: tuple[int, ...]) -> np.ndarray | None:
    """Maps (batch, *view, rows, columns) as (batch, view, height, width)."""
    if maps is None:
        return None
    planes = np.asarray(maps)
    planes = planes.reshape(-1, *planes.shape[-2:])
    return np.stack([resize(plane, (shape[-2], shape[-1])) for plane in planes]).reshape(shape)


def _stretched(maps: Float[np.ndarray, "view height width"]) -> np.ndarray:
    span = np.ptp(maps)
    # What resizing makes of a constant map is constant but for rounding.
    if span <= 1e-6 * np.abs(maps).max():
        return np.zeros_like(maps)
    return (maps - maps.min()) / span
