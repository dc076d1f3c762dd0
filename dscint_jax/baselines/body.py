"""Where on an image the body and the neck are."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

NECK_ROWS = (0.09, 0.19)
"""From the mouth to the collarbones: fractions of the body's height below its crown."""
NECK_HALF_WIDTH = 0.07
"""To each side of the midline: fraction of the body's height."""
NECK_SHAPE = (36, 50)
"""Rows and columns of a crop; its pixels are about square, 5 mm wide."""
NECK_SCALE_PERCENT = 99.0
"""A crop is divided by this percentile of its own: the record's scale tells of other bones."""


@dataclasses.dataclass(frozen=True)
class Body:
    """Where a body lies in an image, pixels.

    Attributes:
      crown: its first row.
      height: rows from the crown to below the feet.
      midline: column, at the height of the neck; the middle of column 0 is 0.5.
    """

    crown: int
    height: int
    midline: float


def find_body(counts: Int[np.ndarray, "height width"]) -> Body:
    """Finds the body by what is brighter than the image's own background.

    Small bright things beside it (a marker, a spill) are passed over. Where nothing is brighter,
    the whole image is the body.
    """
    height, width = counts.shape
    body = body_mask(counts)
    rows = np.flatnonzero(body.any(1))
    if not len(rows):
        return Body(0, height, width / 2)
    crown, size = int(rows[0]), int(rows[-1] + 1 - rows[0])
    neck = body[crown + int(NECK_ROWS[0] * size) : crown + int(np.ceil(NECK_ROWS[1] * size))]
    columns = np.arange(width) + 0.5
    # The median over rows, because a raised arm or a cut shoulder moves the middle of a few.
    middles = [columns[row].mean() for row in neck if row.any()]
    return Body(crown, size, float(np.median(middles)) if middles else width / 2)


def body_mask(counts: Int[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Which pixels are of the body; none where nothing is brighter than the background."""
    smooth = ndimage.gaussian_filter(counts.astype(np.float32), len(counts) / 256)
    return _largest_parts(_brighter_than_background(np.sqrt(smooth)))


def _brighter_than_background(level: Float[np.ndarray, "height width"]) -> Bool[np.ndarray, "..."]:
    bright = level > level.mean()
    if not bright.any():
        return bright
    background, body = np.median(level[~bright]), np.median(level[bright])
    # Low enough for faint feet, and above the scatter around the body: between 0.2 and 0.5 the
    # crown of phantoms moves by less than 1 % of their height.
    return level > background + 0.3 * (body - background)


def _largest_parts(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """The connected parts of at least a twentieth of the largest: faint knees cut a body apart."""
    # SciPy's hints have a bare number too, which comes only with an array to fill.
    parts, count = ndimage.label(mask)  # pyright: ignore[reportGeneralTypeIssues]
    if not count:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return (sizes >= sizes.max() / 20)[parts]


def neck_crop(
    counts: Int[np.ndarray, "height width"], body: Body
) -> Float[np.ndarray, "rows columns"]:
    """Sums the counts of the neck into NECK_SHAPE pixels; outside the image there are none."""
    top, bottom = (body.crown + share * body.height for share in NECK_ROWS)
    half = NECK_HALF_WIDTH * body.height
    rows = np.linspace(top, bottom, NECK_SHAPE[0] + 1)
    columns = np.linspace(body.midline - half, body.midline + half, NECK_SHAPE[1] + 1)
    crop = _resum(_resum(counts.astype(np.float64), rows).T, columns).T
    return crop.astype(np.float32)


def _resum(
    counts: Float[np.ndarray, "row column"], edges: Float[np.ndarray, " edge"]
) -> np.ndarray:
    """Sums rows between fractional edges; a row that an edge cuts is shared out by its parts."""
    summed = np.concatenate([np.zeros((1, counts.shape[1])), counts.cumsum(0)])
    edges = edges.clip(0, len(counts))
    below = np.minimum(edges.astype(int), len(counts) - 1)
    share = (edges - below)[:, None]
    sums = np.diff(summed[below] * (1 - share) + summed[below + 1] * share, axis=0)
    # Rounding makes tiny negative numbers of no counts, and those have no square root.
    return np.maximum(sums, 0)
