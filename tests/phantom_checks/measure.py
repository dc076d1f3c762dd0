"""Measures a whole-body view as `calibration.json` describes clinical ones.

In: counts and the size of a pixel, or which synthetic patient. Out: statistics by name, each of
shape (bins,), float64. The definitions give every figure that the file has for NEMA's NM1.
"""

import dataclasses

import numpy as np
from scipy import ndimage

from tfds_builder.commandline.errors import UserError
from tfds_builder.phantom import Scan, simulate
from tfds_builder.workers import Announce

QUANTILES = (5.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
BANDS = 20
"""Parts of equal height from the top of the head to the toes."""
MIDLINE_SHARE = 0.025
"""What is this share of the body's height or less to either side of the midline counts as on it."""
TRUNK = (0.15, 0.45)
"""From where to where on the body's height the midline is found."""
FAR_MM = 50.0
"""The background is measured at more than this distance from the body, beyond the scatter."""

HOT_SPOTS = {
    "rib": ("rib",),
    "pelvis": ("ili", "sacr", "ischium", "pubis", "acetabulum"),
    "humerus": ("humerus",),
}
"""Where lesions are compared with the other side: beginnings of the names of their sites."""

_BODY_SIGMA, _PEAK_SIGMA = 3.0, 1.5  # Pixels.
_FEWEST_COUNTS, _BODY_SHARE = 0.6, 0.12
_MARGIN, _FLAT_SHARE = 8, 0.5
_LINE = np.array([1.0, -2.0, 1.0])


@dataclasses.dataclass(frozen=True)
class Statistic:
    """What a statistic is called in print, and its bins."""

    title: str
    bins: tuple[str, ...] = ("",)


_BAND_NAMES = tuple(str(number) for number in range(1, BANDS + 1))
STATISTICS = {
    "total_counts": Statistic("total counts"),
    "mean_per_body_px": Statistic("mean in body"),
    "body_area_px": Statistic("body area, px"),
    "body_height_mm": Statistic("body height, mm"),
    "max": Statistic("maximum"),
    "noise": Statistic("noise"),
    "background": Statistic("background"),
    "quantiles_over_mean": Statistic("quantile / mean", tuple(f"{q:g} %" for q in QUANTILES)),
    "longitudinal_fraction_20_bins_head_to_feet": Statistic("share of counts", _BAND_NAMES),
    "body_width_mm_20_bins": Statistic("body width, mm", _BAND_NAMES),
    "midline_fraction_20_bins": Statistic("share on midline", _BAND_NAMES),
}
"""All statistics by their names in `calibration.json`; bands count from the head."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """One patient: the statistics of both views, and the contrast of the lesions by hot spot."""

    views: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]
    hot_spots: tuple[dict[str, tuple[float, ...]], dict[str, tuple[float, ...]]]


def find_body(counts: np.ndarray) -> np.ndarray:
    """Where the body is, shape (rows, columns), bool.

    It is the largest connected region where the counts, smoothed by a Gaussian of 3 pixels, exceed
    0.12 of their median over what exceeds 0.5, and at least 0.6; holes are filled.

    Raises:
      UserError: there is none, or it has fewer rows than there are bands.
    """
    smooth = ndimage.gaussian_filter(np.asarray(counts, float), _BODY_SIGMA)
    lit = smooth[smooth > 0.5]
    level = max(_FEWEST_COUNTS, _BODY_SHARE * float(np.median(lit)) if lit.size else 0.0)
    # SciPy has no hints: of what `label` returns, the kind for another `output` is inferred.
    regions, number = ndimage.label(smooth > level)  # pyright: ignore[reportGeneralTypeIssues]
    largest = np.bincount(regions.flat)[1:].argmax() + 1 if number else -1
    body = np.asarray(ndimage.binary_fill_holes(regions == largest), bool)
    if np.count_nonzero(body.any(axis=1)) < BANDS:
        raise UserError("the view shows no body: measure a whole-body view of more counts")
    return body


def measure(counts: np.ndarray, pixel_mm: float) -> dict[str, np.ndarray]:
    """All of STATISTICS of one view by name, each of shape (bins,), float64.

    `total_counts` and `max` are of the whole view, `mean_per_body_px` is the counts in the body
    over its area. The quantiles are those of the counts in the body after a Gaussian of 1.5 pixels,
    over that mean. The edges of the bands are whole rows, rounded towards the head; a band's width
    is the median over its rows of the pixels of the body. The midline is the mean column of the
    counts of the trunk: 133.5 in NM1, whose figures fit any from 133.3 to 133.7.

    Args:
      counts: (rows, columns), whole and not negative; the head on top.
      pixel_mm: size of a pixel.

    Raises:
      UserError: the view shows no body.
    """
    body = find_body(counts)
    counts = np.asarray(counts, float)
    inside = np.where(body, counts, 0.0)
    mean = inside.sum() / body.sum()
    rows = np.flatnonzero(body.any(axis=1))
    edges = np.linspace(rows[0], rows[-1] + 1, BANDS + 1).astype(int)
    aside = np.abs(np.arange(counts.shape[1]) - midline(counts, body))
    on_midline = inside * (aside <= MIDLINE_SHARE * (edges[-1] - edges[0]))
    bands, middles = (
        np.add.reduceat(image.sum(axis=1), edges[:-1]) for image in (inside, on_midline)
    )
    widths = [np.median(band) for band in np.split(body.sum(axis=1), edges)[1:-1]]
    smooth = ndimage.gaussian_filter(counts, _PEAK_SIGMA)
    values = {
        "total_counts": counts.sum(),
        "mean_per_body_px": mean,
        "body_area_px": body.sum(),
        "body_height_mm": (edges[-1] - edges[0]) * pixel_mm,
        "max": counts.max(),
        "noise": noise(counts, body),
        "background": background(counts, body, pixel_mm),
        "quantiles_over_mean": np.percentile(smooth[body], QUANTILES) / mean,
        "longitudinal_fraction_20_bins_head_to_feet": bands / inside.sum(),
        "body_width_mm_20_bins": np.multiply(widths, pixel_mm),
        "midline_fraction_20_bins": middles / np.maximum(bands, 1.0),
    }
    return {name: np.atleast_1d(np.asarray(values[name], float)) for name in STATISTICS}


def noise(counts: np.ndarray, body: np.ndarray) -> float:
    """Variance over mean of the counts in the flattest half of the body: 1 for Poisson counts.

    Second differences along rows and columns at once cancel whatever is linear in either (J.
    Immerkær, Comput Vis Image Underst 1996;64:300); their squares are compared with what the same
    counts would give as Poisson numbers. Flat is where the smoothed counts rise least against their
    noise. NaN where the body is too small to tell.
    """
    counts = np.asarray(counts, float)
    deep = np.asarray(ndimage.binary_erosion(body, iterations=_MARGIN), bool)
    if not deep.any():
        return float("nan")
    level = np.maximum(ndimage.gaussian_filter(counts, _BODY_SIGMA), 1e-6)
    slope = ndimage.gaussian_gradient_magnitude(counts, _BODY_SIGMA) / np.sqrt(level)
    flat = deep & (slope <= np.quantile(slope[deep], _FLAT_SHARE))
    difference = _along_both(counts, _LINE)[flat]
    expected = float(_along_both(counts, _LINE**2)[flat].sum())
    return float(np.vdot(difference, difference)) / expected if expected else float("nan")


def background(counts: np.ndarray, body: np.ndarray, pixel_mm: float) -> float:
    """Counts per pixel farther than FAR_MM from the body; NaN where nothing is."""
    far = np.asarray(ndimage.distance_transform_edt(~body, sampling=pixel_mm)) > FAR_MM
    return float(np.mean(counts[far])) if far.any() else float("nan")


def midline(counts: np.ndarray, body: np.ndarray) -> float:
    """Column, not rounded, of the midline of a view and its body, both (rows, columns)."""
    rows = np.flatnonzero(body.any(axis=1))
    first, last = (rows[0] + int(share * (rows[-1] + 1 - rows[0])) for share in TRUNK)
    across = (counts * body)[first:last].sum(axis=0)
    columns = np.arange(len(across))
    return float(np.average(columns, weights=across)) if across.any() else float(columns.mean())


def _along_both(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return ndimage.correlate1d(ndimage.correlate1d(image, weights, axis=0), weights, axis=1)


def measure_patient(seed: int, patient: int, _: Announce | None = None) -> Measured:
    """Simulates the first study of one patient and measures it; raises as `measure`."""
    scan = simulate(seed, patient)
    try:
        first, second = (measure(view, scan.protocol.pixel_mm) for view in scan.counts)
    except UserError as error:
        raise UserError(f"patient {patient} of seed {seed}: {error}") from None
    return Measured((first, second), (_hot_spots(scan, 0), _hot_spots(scan, 1)))


def _hot_spots(scan: Scan, view: int) -> dict[str, tuple[float, ...]]:
    """Contrast of the hot metastases of HOT_SPOTS that a view shows beside the midline."""
    found: dict[str, list[float]] = {name: [] for name in HOT_SPOTS}
    seen = [s for s in scan.lesions if s.kind == "metastasis" and s.visible[view] and not s.cold]
    middle = midline(scan.counts[view], find_body(scan.counts[view])) if seen else 0.0
    for record in seen:
        for name, beginnings in HOT_SPOTS.items():
            if record.site.startswith(beginnings):
                lesion = scan.masks[view] == record.number
                found[name] += contrast(scan.counts[view], lesion, middle)
    return {name: tuple(values) for name, values in found.items()}


def contrast(counts: np.ndarray, lesion: np.ndarray, middle: float) -> list[float]:
    """Maximum of a lesion over that of its mirrored region, after a Gaussian of 1.5 pixels.

    `counts` and `lesion`, bool, are (rows, columns); `middle` is the column of the mirror. One
    number, or none where the lesion is not marked in this view, meets its mirrored region, or has
    nothing on the other side.
    """
    rows, columns = np.nonzero(lesion)
    across = np.rint(2 * middle - columns).astype(int)
    seen = (across >= 0) & (across < lesion.shape[1])
    if not seen.any() or lesion[rows[seen], across[seen]].any():
        return []
    smooth = ndimage.gaussian_filter(np.asarray(counts, float), _PEAK_SIGMA)
    other = float(smooth[rows[seen], across[seen]].max())
    return [float(smooth[lesion].max()) / other] if other > 0 else []
