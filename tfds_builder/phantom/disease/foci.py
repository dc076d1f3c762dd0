"""Lesions and harmless foci as the two cameras see them: images, masks and figures of each lesion.

In: the primary views of a patient without foci, his condition, the placed cloud, the scene. Out:
foci added in place; for every true lesion its mask in both views and a `LesionRecord`.
"""

import dataclasses

import numpy as np
from scipy import ndimage

from tfds_builder.phantom.body.outline import ATTENUATION_PER_MM
from tfds_builder.phantom.camera.camera import Scene, add_scatter, depths
from tfds_builder.phantom.camera.grid import Grid, four_pixels
from tfds_builder.phantom.disease.condition import Condition, Finding, Focus, Shade

MASK_SHARE = 0.35
"""A pixel belongs to a lesion where the lesion gives at least this share of its own peak."""
HALF_MAXIMUM = 1.177410023
"""Radius, in standard deviations, at which a Gaussian has half its maximum: sqrt(2 ln 2)."""
VISIBLE_SNR = 5.0
"""Rose's criterion: what is told from noise reliably has at least this signal-to-noise ratio.

Source: A. Rose, Vision: Human and Electronic (Plenum, 1973).
"""
VISIBLE_CONTRAST = 1.25
"""A hot lesion is visible from this contrast, a cold one up to its inverse.

Choice of this phantom: normal bone varies by about that much from place to place.
"""

_SURROUNDINGS_MM = 7.2
_SMALLEST_PATCH = 64  # Powers of two keep the scatter spectra of few patch sizes in the cache.


@dataclasses.dataclass(frozen=True)
class LesionRecord:
    """One true lesion in one study; pairs are (anterior, posterior).

    `site` is the structure without its side; `side` is "left", "right" or "" on the midline.
    `volume_ml` is the volume above half the maximum (below half the loss, if cold): ellipsoids; of
    a lesion of several foci, each further one counts with the share of its radii that lies clear of
    the nearest earlier one. `contrast` is the expected counts over those without the lesion, both
    with scatter and background, at the pixel where the lesion gives (or takes) most. `snr` is that
    of the ideal observer, see `matched_filter_snr`. `visible` are views with an `snr` of at least
    VISIBLE_SNR and a contrast of at least VISIBLE_CONTRAST, or at most its inverse.
    """

    number: int
    kind: str
    site: str
    side: str
    cold: bool
    volume_ml: float
    contrast: tuple[float, float]
    snr: tuple[float, float]
    visible: tuple[bool, bool]


@dataclasses.dataclass(frozen=True)
class LesionImage:
    """What a lesion adds to (or takes from) the primary views: `patch` (2, h, w) of `window`."""

    finding: Finding
    volume_ml: float
    window: tuple[slice, slice]
    patch: np.ndarray


def matched_filter_snr(lesion: np.ndarray, without: np.ndarray) -> float:
    """Signal-to-noise ratio of the ideal observer of a known lesion in Poisson counts.

    sqrt(sum(L^2 / B)) with L the expected counts of the lesion (negative where cold) and B those
    without it, arrays of one shape. It is the Hotelling observer's for uncorrelated noise of
    variance B, and the ideal one's for weak lesions. Source: Barrett and Myers, Foundations of
    Image Science (Wiley, 2004), chapter 13.
    """
    return float(np.sqrt(np.sum(np.square(lesion, dtype=np.float64) / np.maximum(without, 1e-6))))


def add_findings(
    primary: np.ndarray,
    condition: Condition,
    points: np.ndarray,
    weights: np.ndarray,
    scene: Scene,
) -> list[LesionImage]:
    """Takes cold findings from the views (2, rows, columns) and adds hot ones, both in place.

    `points` (n, 3) and `weights` (n,) are the placed cloud. Returns the images of the true lesions.
    """
    images = []
    for finding in condition.findings:
        if finding.cold:
            images.append(_cold_image(finding, points, weights, scene))
            part = primary[:, *images[-1].window]
            np.maximum(part + images[-1].patch, 0, out=part)
    surroundings = primary.copy()
    for finding in condition.findings:
        if not finding.cold:
            images.append(_hot_image(finding, points, scene, surroundings))
            primary[:, *images[-1].window] += images[-1].patch
    images = [image for image in images if image.finding.number]
    for shade in condition.shades:
        share = _shadow(shade, points, scene)
        primary[0] *= share
        for image in images:
            image.patch[0] *= share[image.window]
    return images


def describe_lesions(
    images: list[LesionImage],
    expected: np.ndarray,
    counts_per_primary: float,
    scatter_ratio: float,
    grid: Grid,
) -> tuple[tuple[LesionRecord, ...], np.ndarray]:
    """The records of the lesions, by number, and their masks (2, rows, columns) uint8.

    A pixel of a mask has the number of the lesion that gives (or takes) most counts there. Both
    views of `expected` (2, rows, columns) are as seen from the front; `counts_per_primary` are the
    expected counts for one unit of the primary views.
    """
    masks = np.zeros(expected.shape, np.uint8)
    strongest = np.zeros(expected.shape, np.float32)
    records = []
    for image in images:
        window = (slice(None), *image.window)
        given = np.float32(counts_per_primary) * _with_scatter(image.patch, scatter_ratio, grid)
        _mark(image.finding.number, np.abs(given), strongest[window], masks[window])
        records.append(_record(image, given, expected[window]))
    return tuple(sorted(records, key=lambda record: record.number)), masks


def _shadow(shade: Shade, points: np.ndarray, scene: Scene) -> np.ndarray:
    """The share of every pixel, (rows, columns), that metal with round corners lets through."""
    grid, (wide, tall) = scene.grid, shade.half_mm
    x = points[shade.point, 0] + shade.offset_mm[0]
    z = points[shade.point, 2] + shade.offset_mm[1]
    down = (grid.z_mm(np.arange(grid.rows)) - scene.top_mm - z) / tall
    aside = (grid.x_mm(np.arange(grid.columns)) - x) / wide
    inside = down[:, None] ** 4 + aside**4 < 1
    return np.where(inside, np.float32(shade.transmission), np.float32(1))


def _record(image: LesionImage, given: np.ndarray, expected: np.ndarray) -> LesionRecord:
    contrast, snr, visible = [], [], []
    for lesion, total in zip(given, expected, strict=True):
        without = np.maximum(total - lesion, 1e-6)
        peak = int(np.abs(lesion).argmax())
        contrast.append(float(total.flat[peak] / without.flat[peak]))
        snr.append(matched_filter_snr(lesion, without))
        size = 1 / max(contrast[-1], 1e-6) if image.finding.cold else contrast[-1]
        visible.append(snr[-1] >= VISIBLE_SNR and size >= VISIBLE_CONTRAST)
    finding = image.finding
    site, _, side = finding.site.rpartition("_")
    if side not in ("left", "right"):
        site, side = finding.site, ""
    return LesionRecord(
        finding.number, finding.kind, site, side, finding.cold, image.volume_ml,
        tuple(contrast), tuple(snr), tuple(visible),
    )  # fmt: skip


def _mark(number: int, given: np.ndarray, strongest: np.ndarray, masks: np.ndarray) -> None:
    peak = given.max(axis=(1, 2), keepdims=True)
    inside = (given >= MASK_SHARE * peak) & (given > strongest)
    masks[inside] = number
    strongest[inside] = given[inside]


def _with_scatter(patch: np.ndarray, ratio: float, grid: Grid) -> np.ndarray:
    """A patch (2, h, w) of primary with its own scatter, as the camera adds it to whole views."""
    tall, wide = patch.shape[1:]
    side = max(_SMALLEST_PATCH, 1 << (max(tall, wide) - 1).bit_length())
    padded = np.zeros((2, side, side), np.float32)
    padded[:, :tall, :wide] = np.abs(patch)
    spread = add_scatter(padded, ratio, Grid(side, side, grid.pixel_mm))[:, :tall, :wide]
    return -spread if patch.min() < 0 else spread


def _places(finding: Finding, points: np.ndarray) -> np.ndarray:
    """Centres of the foci, shape (foci, 3), mm."""
    return np.stack([points[f.point] + np.asarray(f.offset_mm, np.float32) for f in finding.foci])


def _volume_ml(foci: tuple[Focus, ...], places: np.ndarray) -> float:
    total = 0.0
    for number, focus in enumerate(foci):
        radii = HALF_MAXIMUM * np.asarray(focus.sigma_mm)
        gaps = np.linalg.norm(places[:number] - places[number], axis=1)
        reach = [HALF_MAXIMUM * np.mean(f.sigma_mm) + radii.mean() for f in foci[:number]]
        clear = min([1.0, *(gaps / np.asarray(reach))])
        total += clear * 4 / 3 * np.pi * float(np.prod(radii)) / 1000
    return total


def _window(finding: Finding, places: np.ndarray, scene: Scene) -> tuple[slice, slice]:
    grid = scene.grid
    reach = np.array([4 * (max(focus.sigma_mm) + 4) for focus in finding.foci])
    limits = []
    for center, size in (
        (grid.row(places[:, 2] + scene.top_mm), grid.rows),
        (grid.column(places[:, 0]), grid.columns),
    ):
        first = int(np.floor((center - reach / grid.pixel_mm).min()))
        last = int(np.ceil((center + reach / grid.pixel_mm).max())) + 1
        first = min(max(first, 0), size - 1)
        limits.append(slice(first, min(max(last, first + 1), size)))
    return limits[0], limits[1]


def _hot_image(
    finding: Finding, points: np.ndarray, scene: Scene, surroundings: np.ndarray
) -> LesionImage:
    places = _places(finding, points)
    window = _window(finding, places, scene)
    z = scene.grid.z_mm(np.arange(window[0].start, window[0].stop)) - scene.top_mm
    x = scene.grid.x_mm(np.arange(window[1].start, window[1].stop))
    patch = np.zeros((2, len(z), len(x)), np.float32)
    depth = depths(places, scene)
    for number, (focus, place) in enumerate(zip(finding.foci, places, strict=True)):
        units, activities = [], []
        for view in range(2):
            blur = scene.collimator.sigma_mm(abs(scene.faces[view] - place[1]))
            wide, tall = np.hypot(focus.sigma_mm[0], blur), np.hypot(focus.sigma_mm[2], blur)
            peak = np.exp(-ATTENUATION_PER_MM * depth[view][number]) / (wide * tall)
            column = (peak * np.exp(-0.5 * ((z - place[2]) / tall) ** 2)).astype(np.float32)
            row = np.exp(-0.5 * ((x - place[0]) / wide) ** 2).astype(np.float32)
            units.append((column, row))
            activities.append(_level(surroundings[view], place, scene) / peak)
        activity = np.float32((focus.ratio - 1) * min(activities))
        for view, (column, row) in enumerate(units):
            patch[view] += (activity * column)[:, None] * row
    return LesionImage(finding, _volume_ml(finding.foci, places), window, patch)


def _level(view: np.ndarray, place: np.ndarray, scene: Scene) -> float:
    """Mean of a view in the 14 mm about a place; 0 outside the matrix."""
    row = int(scene.grid.row(place[2] + scene.top_mm))
    column = int(scene.grid.column(place[0]))
    half = max(1, round(_SURROUNDINGS_MM / scene.grid.pixel_mm))
    rows = slice(max(0, row - half + 1), max(0, row + half + 1))
    near = view[rows, max(0, column - half + 1) : max(0, column + half + 1)]
    return float(near.mean()) if near.size else 0.0


def _cold_image(
    finding: Finding, points: np.ndarray, weights: np.ndarray, scene: Scene
) -> LesionImage:
    """What the views lose where the cloud lacks uptake: at a focus, all but `ratio` of it."""
    places = _places(finding, points)
    window = _window(finding, places, scene)
    level = points[:, 2] + np.float32(scene.top_mm)
    first, last = (scene.grid.z_mm(row) for row in (window[0].start, window[0].stop))
    chosen = np.flatnonzero((level > first) & (level < last))
    near, kept = points[chosen], np.ones(len(chosen), np.float32)
    for focus, place in zip(finding.foci, places, strict=True):
        distance = (near - place) / np.asarray(focus.sigma_mm, np.float32)
        kept *= 1 - np.float32(1 - focus.ratio) * np.exp(-0.5 * (distance**2).sum(axis=1))
    inside = kept < 0.99
    near, lost = near[inside], (weights[chosen] * (1 - kept))[inside]
    shape = (window[0].stop - window[0].start, window[1].stop - window[1].start)
    row = scene.grid.row(near[:, 2] + scene.top_mm) - window[0].start
    column = scene.grid.column(near[:, 0]) - window[1].start
    patch = np.zeros((2, *shape), np.float32)
    pixels, shares = four_pixels(row, column, shape)
    for view, depth in enumerate(depths(near, scene)):
        seen = lost * np.exp(-ATTENUATION_PER_MM * depth)
        image = np.zeros(shape[0] * shape[1])
        for pixel, share in zip(pixels, shares, strict=True):
            image += np.bincount(pixel, share * seen, len(image))
        image = image.reshape(shape).astype(np.float32)
        blur = scene.collimator.sigma_mm(abs(scene.faces[view] - places[:, 1].mean()))
        patch[view] = -ndimage.gaussian_filter(image, blur / scene.grid.pixel_mm)
    return LesionImage(finding, _volume_ml(finding.foci, places), window, patch)
