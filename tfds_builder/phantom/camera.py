"""The gamma camera: from placed, weighted points to expected counts in two conjugate views.

Order: attenuate by depth, blur by the distance to the collimator, add scatter; the caller scales
to the total counts and draws the Poisson numbers. Images are (1024, 256), 2.40 mm pixels.
"""

import functools

import numpy as np
import scipy.fft

from tfds_builder.phantom.anatomy import COLUMNS, PIXEL_MM, ROWS, Outline

ATTENUATION_PER_MM = 0.0154
"""Water at 140.5 keV."""
TABLE_WATER_MM = 6.5
"""Water that attenuates as the imaging table does: about a tenth."""
FWHM_DISTANCE_MM = (0.0, 50.0, 100.0, 150.0, 200.0)
FWHM_MM = (4.1, 5.3, 7.0, 8.9, 10.9)
"""System resolution of a low-energy high-resolution collimator by the distance of the source."""
SCATTER_LENGTH_MM = 10.0
"""Decay length of the broad mono-exponential tail."""
SLABS = 7
SLAB_LIMITS_MM = (-120.0, 130.0)
SOFT_TISSUE_MM = 45.0
"""Distance from the middle plane, towards the camera, at which all soft tissue is blurred."""

FWHM_PER_SIGMA = 2.354820045


def system_sigma_mm(distance_mm: np.ndarray | float) -> np.ndarray:
    """Standard deviation of the point spread at a distance from the collimator, both in mm."""
    slope = (FWHM_MM[-1] - FWHM_MM[-2]) / (FWHM_DISTANCE_MM[-1] - FWHM_DISTANCE_MM[-2])
    beyond = np.maximum(np.asarray(distance_mm) - FWHM_DISTANCE_MM[-1], 0) * slope
    return (np.interp(distance_mm, FWHM_DISTANCE_MM, FWHM_MM) + beyond) / FWHM_PER_SIGMA


@functools.lru_cache(maxsize=1)
def _squared_frequency() -> np.ndarray:
    """Squared spatial frequency of the half spectrum, cycles2/mm2, shape (1024, 129)."""
    rows = np.fft.fftfreq(ROWS, PIXEL_MM)[:, None]
    columns = np.fft.rfftfreq(COLUMNS, PIXEL_MM)[None]
    return (rows**2 + columns**2).astype(np.float32)


@functools.lru_cache(maxsize=1)
def _scatter_spectrum() -> np.ndarray:
    decay = (2 * np.pi * SCATTER_LENGTH_MM) ** 2
    return ((1 + decay * _squared_frequency()) ** -1.5).astype(np.float32)


def depths(points: np.ndarray, outline: Outline, top_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Water in front of points (n, 3) for the front and the back camera, each (n,), mm.

    The back camera looks through the table.
    """
    row = np.clip(((points[:, 2] + top_mm) / PIXEL_MM).astype(np.int32), 0, ROWS - 1)
    column = np.clip((points[:, 0] / PIXEL_MM + COLUMNS / 2).astype(np.int32), 0, COLUMNS - 1)
    pixel = row * COLUMNS + column
    lung = outline.lung.reshape(-1)[pixel]
    front = np.clip(outline.front.reshape(-1)[pixel] - points[:, 1], 2, 320) * lung
    back = np.clip(points[:, 1] - outline.back.reshape(-1)[pixel], 2, 320) * lung
    back += TABLE_WATER_MM
    return front, back


def expected_primary(
    points: np.ndarray,
    weights: np.ndarray,
    outline: Outline,
    top_mm: float,
    faces: tuple[float, float],
    soft: float,
) -> np.ndarray:
    """Unscattered expectation of both views, as seen from the front, shape (2, 1024, 256).

    `faces` are the y of the front and the back collimator; `soft` is the activity of soft tissue
    per mm3 in the unit of `weights`.
    """
    splat = _splat_plan(points, top_mm)
    middle = np.linspace(*SLAB_LIMITS_MM, 2 * SLABS + 1)[1::2]
    soft_pixel = np.float32(soft * PIXEL_MM**2)
    through_table = np.float32(np.exp(-ATTENUATION_PER_MM * TABLE_WATER_MM))
    views = []
    for depth, face, tissue in zip(
        depths(points, outline, top_mm),
        faces,
        (outline.soft_front, outline.soft_back * through_table),
        strict=True,
    ):
        slabs = _splat(splat, weights * np.exp(-ATTENUATION_PER_MM * depth))
        slabs[int(np.abs(middle - np.sign(face) * SOFT_TISSUE_MM).argmin())] += tissue * soft_pixel
        sigma = system_sigma_mm(np.abs(face - middle))
        views.append(_blur_sum(slabs, sigma))
    return np.stack(views)


def _splat_plan(points: np.ndarray, top_mm: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Where the four pixels of each point lie in the slab stack, and the bilinear shares."""
    low, high = SLAB_LIMITS_MM
    slab = ((points[:, 1] - low) * (SLABS / (high - low))).astype(np.int32)
    slab = np.clip(slab, 0, SLABS - 1)
    row = np.clip((points[:, 2] + top_mm) / PIXEL_MM - 0.5, 0, ROWS - 1.001).astype(np.float32)
    column = points[:, 0] / PIXEL_MM + (COLUMNS / 2 - 0.5)
    column = np.clip(column, 0, COLUMNS - 1.001).astype(np.float32)
    top, left = row.astype(np.int32), column.astype(np.int32)
    down, right = row - top, column - left
    corner = (slab * ROWS + top) * COLUMNS + left
    indices = [corner, corner + 1, corner + COLUMNS, corner + COLUMNS + 1]
    shares = [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right]
    return indices, shares


def _splat(plan: tuple[list[np.ndarray], list[np.ndarray]], weights: np.ndarray) -> np.ndarray:
    index = np.concatenate(plan[0])
    value = np.concatenate([share * weights for share in plan[1]])
    summed = np.bincount(index, value, minlength=SLABS * ROWS * COLUMNS)
    return summed.astype(np.float32).reshape(SLABS, ROWS, COLUMNS)


def _blur_sum(slabs: np.ndarray, sigma_mm: np.ndarray) -> np.ndarray:
    spectrum = scipy.fft.rfft2(slabs, overwrite_x=True)
    squared = _squared_frequency()
    total = np.zeros(spectrum.shape[1:], np.complex64)
    for part, sigma in zip(spectrum, sigma_mm, strict=True):
        total += part * np.exp(np.float32(-2 * np.pi**2 * sigma**2) * squared)
    return np.maximum(scipy.fft.irfft2(total, s=(ROWS, COLUMNS)), 0)


def add_scatter(primary: np.ndarray, ratio: float) -> np.ndarray:
    """Adds scatter of `ratio` times the primary's sum to views (2, 1024, 256)."""
    spectrum = scipy.fft.rfft2(primary)
    spectrum *= 1 + np.float32(ratio) * _scatter_spectrum()
    return np.maximum(scipy.fft.irfft2(spectrum, s=(ROWS, COLUMNS)), 0)


def scaled_expectation(views: np.ndarray, counts: float, background: float) -> np.ndarray:
    """Scales both views by one factor to `counts` a view on average and adds the background."""
    room = views.shape[1] * views.shape[2]
    factor = (counts - background * room) / float(views.sum(dtype=np.float64) / len(views))
    return views * np.float32(factor) + np.float32(background)


def detect(expected: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Poisson counts as uint16, of the shape of the expectation."""
    return np.minimum(rng.poisson(expected), 65535).astype(np.uint16)


def turn_posterior(views: np.ndarray) -> np.ndarray:
    """Turns the second of two views, drawn as seen from the front, to be as seen from behind."""
    return np.stack([views[0], views[1, :, ::-1]])
