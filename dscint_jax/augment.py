"""Normalisation and the parameter transformations, on the device and inside the train step.

Counts go in, network inputs come out. Mirror, translation and rotation are the transformations
that the authors' related work names; their ranges are ours. They are composed into one affine map,
so that an image is interpolated once.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Int, Key


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Ranges of the random transformations; all zero changes nothing.

    Attributes:
      mirror: probability of exchanging left and right.
      translation: largest shift, as a fraction of the image's height and of its width; a shift is
        a whole number of pixels, so that it leaves the noise as it is.
      rotation: largest angle, degrees.
      rotated: probability of a rotation. Interpolation smooths the noise, and a network that sees
        smoothed images only is a stranger to the others.
    """

    mirror: float = 0.0
    translation: tuple[float, float] = (0.0, 0.0)
    rotation: float = 0.0
    rotated: float = 0.0

    @property
    def active(self) -> bool:
        """Whether any image can change at all."""
        return bool(self.mirror or any(self.translation) or (self.rotation and self.rotated))


def normalise(
    counts: Int[Array, "batch *view height width 1"],
    scale: Float[Array, "batch *view"],
    *,
    clip: float,
) -> Float[Array, "batch *view height width 1"]:
    """Counts over the image's own scale, under a square root, clipped.

    The square root makes the spread of Poisson counts the same everywhere (Anscombe 1948); the clip
    keeps a full bladder from drowning the skeleton.

    Args:
      counts: counts a pixel, of images or of studies.
      scale: counts a pixel that become 1.
      clip: largest value of the result.
    """
    ratio = counts.astype(jnp.float32) / scale[..., None, None, None]
    return jnp.minimum(jnp.sqrt(ratio), clip)


def augment(
    key: Key[Array, ""],
    images: Float[Array, "batch *view height width channel"],
    ranges: Augmentation,
) -> Float[Array, "batch *view height width channel"]:
    """Transforms every image by its own random draw; what enters from outside is zero.

    Image i draws from the i-th key, so the result does not depend on how the batch is sharded. Of
    studies, each is one draw, as if its patient lay otherwise: the camera behind sees the patient
    shifted and turned the other way.

    Args:
      key: of this step.
      images: single views, or pairs of them, the anterior first.
      ranges: of the draws.
    """
    if not ranges.active:
        return images
    keys = jax.random.split(key, images.shape[0])
    augment_one = _augment_image if images.ndim == 4 else _augment_study
    return jax.vmap(lambda k, image: augment_one(k, image, ranges))(keys, images)


def _augment_image(key: jax.Array, image: jax.Array, ranges: Augmentation) -> jax.Array:
    return affine(image, **_draw(key, image.shape[:2], ranges))


def _augment_study(key: jax.Array, study: jax.Array, ranges: Augmentation) -> jax.Array:
    drawn = _draw(key, study.shape[1:3], ranges)
    from_behind = drawn | {
        "angle": -drawn["angle"],
        "shift": drawn["shift"] * jnp.array([1.0, -1.0]),
    }
    anterior, posterior = study
    return jnp.stack([affine(anterior, **drawn), affine(posterior, **from_behind)])


def _draw(key: jax.Array, shape: tuple[int, int], ranges: Augmentation) -> dict[str, jax.Array]:
    """One random draw of `affine`'s arguments for an image of this height and width."""
    mirror_key, shift_key, angle_key, rotated_key = jax.random.split(key, 4)
    flip = jnp.where(jax.random.bernoulli(mirror_key, ranges.mirror), -1.0, 1.0)
    limit = jnp.array(ranges.translation) * jnp.array(shape)
    shift = jnp.round(jax.random.uniform(shift_key, (2,), minval=-1.0, maxval=1.0) * limit)
    degrees = jax.random.uniform(angle_key, minval=-1.0, maxval=1.0) * ranges.rotation
    rotated = jax.random.bernoulli(rotated_key, ranges.rotated)
    angle = jnp.where(rotated, jnp.deg2rad(degrees), 0.0)
    return {"angle": angle, "shift": shift, "flip": flip}


def affine(
    image: Float[Array, "height width channel"],
    *,
    angle: Float[Array, ""],
    shift: Float[Array, "2"],
    flip: Float[Array, ""],
) -> Float[Array, "height width channel"]:
    """Rotates about the centre, mirrors and shifts an image, by one bilinear interpolation.

    Args:
      image: any number of channels.
      angle: radians, positive turns the image's top towards its right.
      shift: rows down, columns to the right; pixels.
      flip: -1 exchanges left and right before the rotation, 1 does not.
    """
    height, width, channels = image.shape
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
    rows = jnp.arange(height)[:, None] - centre[0] - shift[0]
    columns = jnp.arange(width)[None, :] - centre[1] - shift[1]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    source_rows = cos * rows - sin * columns + centre[0]
    source_columns = flip * (sin * rows + cos * columns) + centre[1]
    planes = [
        map_coordinates(image[..., c], [source_rows, source_columns], order=1, mode="constant")
        for c in range(channels)
    ]
    return jnp.stack(planes, -1)
