"""The random transformations of counts and images, on the device and inside the train step.

Counts go in, network inputs come out: counts lost as in a shorter scan, brightness changed,
normalised, moved. Mirror, translation and rotation are the transformations that the authors'
related work names; their ranges, and all others, are ours. Mirror, scaling, rotation and
translation are composed into one affine map, so that an image is interpolated once; a lesion mask
goes the same way as its image.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Int, Key, Real

from dscint_jax.config import Augmentation
from dscint_jax.input_pipeline.protocol import COPIES_SEED
from dscint_jax.input_pipeline.records import COPY, HostBatch
from dscint_jax.pytree import pytree
from dscint_jax.random_streams import stream_key


@pytree
@dataclasses.dataclass(frozen=True)
class Pose:
    """How a patient lies; of several, every attribute has a leading axis.

    Attributes:
      flip: -1 where left and right are exchanged, before all else; 1 elsewhere.
      size: factor of the distances from the image's centre.
      angle: radians about the centre; positive turns the image's top towards its right.
      shift: rows down and columns to the right; pixels.
    """

    flip: Float[Array, "*batch"]
    size: Float[Array, "*batch"]
    angle: Float[Array, "*batch"]
    shift: Float[Array, "*batch 2"]

    @property
    def from_behind(self) -> "Pose":
        """The same patient as the camera behind sees him: shifted and turned the other way."""
        return Pose(self.flip, self.size, -self.angle, self.shift * jnp.array([1.0, -1.0]))


def augment_counts(
    keys: Key[Array, " batch"],
    counts: Real[Array, "batch *view height width 1"],
    scale: Float[Array, " batch *view"],
    ranges: Augmentation,
) -> tuple[Real[Array, "batch *view height width 1"], Float[Array, " batch *view"]]:
    """Thins the counts and changes the brightness of every image, or study, by its own key.

    Returns:
      Counts, and scales for `normalise`. A shorter scan's scale shrinks with its counts, as it does
      where the scale is measured on the image: what is left to see is its noise.
    """

    def one(key: jax.Array, counts: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        factor_key, intensified_key, share_key, thinned_key, counts_key = jax.random.split(key, 5)
        if ranges.changes_intensity:
            factor = _factor(factor_key, ranges.intensity)
            scale = scale / _sometimes(intensified_key, ranges.intensified, factor, 1.0)
        if ranges.thins:
            share = 1.0 - jax.random.uniform(share_key) * ranges.thinning
            share = _sometimes(thinned_key, ranges.thinned, share, 1.0)
            kept = jax.random.binomial(counts_key, counts.astype(jnp.float32), share)
            counts, scale = kept.astype(counts.dtype), scale * share
        return counts, scale

    if not (ranges.changes_intensity or ranges.thins):
        return counts, scale
    return jax.vmap(one)(keys, counts, scale)


def augment_images(
    keys: Key[Array, " batch"],
    images: Float[Array, "batch *view height width channel"],
    ranges: Augmentation,
) -> Float[Array, "batch *view height width channel"]:
    """Moves every image, or study, into a pose drawn from its own key."""
    if not ranges.moves:
        return images
    return move(images, draw_poses(keys, images.shape[-3:-1], ranges))


def apply_copies(
    images: Float[Array, "batch *view height width channel"],
    copy: Int[Array, " batch"],
    ranges: Augmentation,
) -> Float[Array, "batch *view height width channel"]:
    """Moves every copy of an image, or study, into the one pose that it always has.

    The pose follows from the copy's running number, by mirror, translation, rotation
    and scaling, each within its range and with its probability. Brightness and counts stay.

    Args:
      images: normalised.
      copy: running numbers; -1 for what is not to be moved.
      ranges: of the run.
    """
    if not ranges.moves:
        return images
    keys = jax.vmap(lambda number: stream_key(COPIES_SEED, "copies", number))(copy)
    moved = move(images, draw_poses(keys, images.shape[-3:-1], ranges))
    return jnp.where(copy.reshape(-1, *(1,) * (images.ndim - 1)) < 0, images, moved)


def images_seen(
    batch: HostBatch, ranges: Augmentation
) -> Float[np.ndarray, "batch *view height width 1"]:
    """What a network sees of a host's batch: sqrt(counts / scale), copies moved, not clipped."""
    images = np.sqrt(batch["counts"] / batch["scale"][..., None, None, None])
    if COPY not in batch:
        return images
    images = jnp.asarray(images.astype(np.float32))
    return np.asarray(apply_copies(images, jnp.asarray(batch[COPY]), ranges))


def draw_poses(keys: Key[Array, " batch"], shape: Sequence[int], ranges: Augmentation) -> Pose:
    """A random pose for each key, in images of this height and width."""

    def one(key: jax.Array) -> Pose:
        mirror_key, shift_key, angle_key, rotated_key, *new_keys = jax.random.split(key, 7)
        size_key, scaled_key, translated_key = new_keys
        limit = jnp.array(ranges.translation) * jnp.array(shape, jnp.float32)
        shift = jnp.round(jax.random.uniform(shift_key, (2,), minval=-1.0, maxval=1.0) * limit)
        degrees = jax.random.uniform(angle_key, minval=-1.0, maxval=1.0) * ranges.rotation
        return Pose(
            flip=_sometimes(mirror_key, ranges.mirror, -1.0, 1.0),
            size=_sometimes(scaled_key, ranges.scaled, _factor(size_key, ranges.scaling), 1.0),
            angle=_sometimes(rotated_key, ranges.rotated, jnp.deg2rad(degrees), 0.0),
            shift=_sometimes(translated_key, ranges.translated, shift, 0.0),
        )

    return jax.vmap(one)(keys)


def move(
    images: Float[Array, "batch *view height width channel"], poses: Pose
) -> Float[Array, "batch *view height width channel"]:
    """Moves every image into its pose; what enters from outside is zero.

    Of studies, pairs of views with the anterior first, each has one pose, as if its patient lay
    otherwise.
    """

    def study(views: jax.Array, pose: Pose) -> jax.Array:
        anterior, posterior = views
        return jnp.stack([affine(anterior, pose), affine(posterior, pose.from_behind)])

    return jax.vmap(affine if images.ndim == 4 else study)(images, poses)


def affine(
    image: Float[Array, "height width channel"], pose: Pose
) -> Float[Array, "height width channel"]:
    """Moves one image into its pose by one bilinear interpolation."""
    height, width, channels = image.shape
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
    rows = jnp.arange(height, dtype=jnp.float32)[:, None] - centre[0] - pose.shift[0]
    columns = jnp.arange(width, dtype=jnp.float32)[None, :] - centre[1] - pose.shift[1]
    cos, sin = jnp.cos(pose.angle) / pose.size, jnp.sin(pose.angle) / pose.size
    source_rows = cos * rows - sin * columns + centre[0]
    source_columns = pose.flip * (sin * rows + cos * columns) + centre[1]
    planes = [
        map_coordinates(image[..., c], [source_rows, source_columns], order=1, mode="constant")
        for c in range(channels)
    ]
    return jnp.stack(planes, -1)


def _factor(key: jax.Array, change: float) -> jax.Array:
    """A random factor between 1 / (1 + change) and 1 + change, even in its logarithm."""
    return (1.0 + change) ** jax.random.uniform(key, minval=-1.0, maxval=1.0)


def _sometimes(
    key: jax.Array, probability: float, value: jax.Array | float, otherwise: float
) -> jax.Array:
    return jnp.where(jax.random.bernoulli(key, probability), value, otherwise)
