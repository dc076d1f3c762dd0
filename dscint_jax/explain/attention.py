"""Where the network looks: its spatial attention, laid over the scintigram."""

import dataclasses

import numpy as np
from jaxtyping import Float
from PIL import Image

from dscint_jax.evaluate.restored import TrainedNetwork
from dscint_jax.input_pipeline import HostBatch
from dscint_jax.metrics.passes import Evaluation
from dscint_jax.models import AttentionMaps


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
    """

    views: Float[np.ndarray, "view height width"]
    attention: Float[np.ndarray, "view height width"] | None
    probabilities: Float[np.ndarray, " classes"]
    label: int
    view: str


def explain(network: TrainedNetwork, indices: np.ndarray) -> list[Explained]:
    """Explains some images of the network's split, given by their indices."""
    size = network.batch_size
    explained = []
    for start in range(0, len(indices), size):
        chosen = np.asarray(indices[start : start + size])
        # The compiled step takes full batches only: repeat the first image to fill one.
        filled = np.concatenate([chosen, np.repeat(chosen[:1], size - len(chosen))])
        batch = network.images.read(filled)
        result, attention = network.evaluate(batch), network.attention(batch)
        pixels = network.as_seen(batch)[..., 0]
        explained += [_explained(batch, pixels, result, attention, i) for i in range(len(chosen))]
    return explained


def resize(
    plane: Float[np.ndarray, "rows columns"], shape: tuple[int, int]
) -> Float[np.ndarray, "height width"]:
    """Bilinear resize of a map to an image's height and width."""
    image = Image.fromarray(np.asarray(plane, np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


def _explained(
    batch: HostBatch,
    pixels: Float[np.ndarray, "batch *view height width"],
    result: Evaluation,
    attention: AttentionMaps,
    i: int,
) -> Explained:
    height, width = pixels.shape[-2:]
    views = pixels[i].reshape(-1, height, width)
    maps = attention.spatial
    if maps is not None:
        planes = np.asarray(maps)[i, ..., 0]
        planes = planes.reshape(-1, *planes.shape[-2:])
        maps = np.stack([resize(plane, (height, width)) for plane in planes])
    return Explained(
        views=views,
        attention=maps,
        probabilities=np.asarray(result.probabilities)[i],
        label=int(batch["label"][i]),
        view=str(batch["view"][i]),
    )
