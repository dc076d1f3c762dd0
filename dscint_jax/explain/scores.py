"""How well a map points at lesions, and the maps that any network has to beat.

In: a map of an image or study, and which of its pixels are lesions. Out: whether its maximum is on
a lesion, and how much of it lies in lesions. A map that is the same everywhere points nowhere, and
is scored as what it does by chance.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from dscint_jax.baselines.body import body_mask

POINTING, ENERGY = "pointing", "energy"
SCORES = (POINTING, ENERGY)

RANDOM, CENTRE, BRIGHTEST = "random", "centre", "brightest"
BASELINES = (RANDOM, CENTRE, BRIGHTEST)

TIE = 1e-6
"""Values that differ by less, in parts of a map's range, are equal: a resize rounds."""

Heat = Float[np.ndarray, "view height width"]


@dataclasses.dataclass(frozen=True)
class Region:
    """Where a map should point, on the pixels that the network sees.

    Attributes:
      share: how much of each pixel is lesion.
      near: which pixels are no further from such a pixel than the tolerance, middle to middle.
    """

    share: Heat
    near: Bool[np.ndarray, "view height width"]


def region_of(
    lesion: Bool[np.ndarray, "view height width"],
    pixel_mm: Float[np.ndarray, " view"],
    side: int,
    tolerance_mm: float,
) -> Region:
    """The region of some lesions.

    Args:
      lesion: which of the recorded pixels are theirs.
      pixel_mm: side of a recorded pixel in each view; looked at where a view has lesions.
      side: of the blocks of recorded pixels that the network is given the sums of.
      tolerance_mm: see `Region`.
    """
    views, height, width = lesion.shape
    share = lesion.reshape(views, height // side, side, width // side, side).mean((2, 4))
    near = np.zeros(share.shape, bool)
    for view in np.flatnonzero(lesion.any((1, 2))):
        distance = np.asarray(ndimage.distance_transform_edt(share[view] == 0))
        near[view] = distance * (pixel_mm[view] * side) <= tolerance_mm
    return Region(share, near)


def pointing(heat: Heat, region: Region) -> float:
    """Whether the maximum is on a lesion, or near enough: 1 or 0; of equal maxima, the mean.

    The pointing game of Zhang et al. (Int J Comput Vis 2018;126:1084).
    """
    return float(region.near[heat >= heat.max() - TIE * np.ptp(heat)].mean())


def energy(heat: Heat, region: Region) -> float:
    """The share of the map's sum that lies in lesions; of a map of zeros, of the pixels.

    The energy-based pointing game of Wang et al. (Score-CAM, CVPR Workshops 2020). The map is at
    least 0 everywhere.
    """
    total = heat.sum(dtype=np.float64)
    return float((heat * region.share).sum() / total) if total > 0 else float(region.share.mean())


def baseline_maps(
    views: Heat, counts: Int[np.ndarray, "view height width"]
) -> dict[str, Float[np.ndarray, "view height width"]]:
    """Maps, by BASELINES, that know nothing of the class; both views of a study count alike.

    'random' is the same on all pixels of the body: its scores are what a pixel drawn at random
    reaches in the mean. 'centre' is 1 in the middle of the body and falls to 0 at its farthest
    pixel. 'brightest' is the image.

    Args:
      views: the image as the network sees it, not clipped.
      counts: the same before normalisation.
    """
    bodies = np.stack([_body(plane) for plane in counts])
    return {
        RANDOM: bodies.astype(np.float64),
        CENTRE: np.stack([_cone(body) for body in bodies]),
        BRIGHTEST: views.astype(np.float64),
    }


def rank_correlation(heat: Heat, other: Heat, views: Heat) -> float:
    """Spearman's rank correlation of two maps over the views that are there; NaN of a constant one.

    Adebayo et al. (NeurIPS 2018) compare the map of a trained network with that of the same network
    with random weights.
    """
    # A second to import, which only scores need.
    from scipy.stats import rankdata

    there = views.any((1, 2))
    pair = heat[there].ravel(), other[there].ravel()
    if any(np.ptp(values) == 0 for values in pair):
        return np.nan
    first, second = (ranks - ranks.mean() for ranks in map(rankdata, pair))
    scale = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / scale)


def _body(counts: Int[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    body = body_mask(counts)
    return body if body.any() else np.full(counts.shape, bool(counts.any()))


def _cone(body: Bool[np.ndarray, "height width"]) -> Float[np.ndarray, "height width"]:
    heat = np.zeros(body.shape)
    places = np.argwhere(body)
    if len(places):
        distance = np.linalg.norm(places - places.mean(0), axis=1)
        heat[body] = 1 - (distance - distance.min()) / max(np.ptp(distance), 1.0)
    return heat
