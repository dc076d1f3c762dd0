"""The gamma camera: from placed, weighted points to expected counts in two conjugate views.

Order: attenuate by depth, blur by the distance to the collimator, add scatter; the caller scales
to the total counts and draws the Poisson numbers.
"""

import dataclasses
import functools

import numpy as np
import scipy.fft

from tfds_builder.phantom.body.outline import ATTENUATION_PER_MM, Outline
from tfds_builder.phantom.camera.grid import Grid, four_pixels
from tfds_builder.phantom.camera.protocol import Collimator

TABLE_WATER_MM = 6.5
"""Water that attenuates as the imaging table does: about a tenth."""
SCATTER_LENGTH_MM = 11.0
"""Decay length of the broad mono-exponential tail."""
SLABS = 7
SLAB_LIMITS_MM = (-120.0, 130.0)
SOFT_TISSUE_MM = 45.0
"""Distance from the middle plane, towards the camera, at which all soft tissue is blurred."""


@dataclasses.dataclass(frozen=True)
class Scene:
    """A patient on the table between two cameras.

    `top_mm` is the z of the crown in the image, `faces` the y of the front and of the back
    collimator.
    """

    outline: Outline
    grid: Grid
    collimator: Collimator
    top_mm: float
    faces: tuple[float, float]


@functools.lru_cache(maxsize=4)
def _squared_frequency(grid: Grid) -> np.ndarray:
    """Squared spatial frequency of the half spectrum, cycles2/mm2, (rows, columns // 2 + 1)."""
    rows = np.fft.fftfreq(grid.rows, grid.pixel_mm)[:, None]
    columns = np.fft.rfftfreq(grid.columns, grid.pixel_mm)[None]
    return (rows**2 + columns**2).astype(np.float32)


@functools.lru_cache(maxsize=4)
def _scatter_spectrum(grid: Grid) -> np.ndarray:
    decay = (2 * np.pi * SCATTER_LENGTH_MM) ** 2
    return ((1 + decay * _squared_frequency(grid)) ** -1.5).astype(np.float32)


def depths(points: np.ndarray, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Water in front of points (n, 3) for the front and the back camera, each (n,), mm.

    The back camera looks through the table.
    """
    outline, grid = scene.outline, scene.grid
    row = ((points[:, 2] + scene.top_mm) / grid.pixel_mm).astype(np.int32)
    column = (points[:, 0] / grid.pixel_mm + grid.columns / 2).astype(np.int32)
    pixel = np.clip(row, 0, grid.rows - 1) * grid.columns + np.clip(column, 0, grid.columns - 1)
    lung = outline.lung.reshape(-1)[pixel]
    front = np.clip(outline.front.reshape(-1)[pixel] - points[:, 1], 2, 320) * lung
    back = np.clip(points[:, 1] - outline.back.reshape(-1)[pixel], 2, 320) * lung
    back += TABLE_WATER_MM
    return front, back


def expected_primary(
    points: np.ndarray, weights: np.ndarray, scene: Scene, soft: float
) -> np.ndarray:
    """Unscattered expectation of both views, as seen from the front, shape (2, rows, columns).

    `soft` is the activity of soft tissue per mm3 in the unit of `weights`.
    """
    grid = scene.grid
    pixels, shares = _places(points, scene)
    middle = np.linspace(*SLAB_LIMITS_MM, 2 * SLABS + 1)[1::2]
    soft_pixel = np.float32(soft * grid.pixel_mm**2)
    through_table = np.float32(np.exp(-ATTENUATION_PER_MM * TABLE_WATER_MM))
    views = []
    for depth, face, tissue in zip(
        depths(points, scene),
        scene.faces,
        (scene.outline.soft_front, scene.outline.soft_back * through_table),
        strict=True,
    ):
        seen = weights * np.exp(-ATTENUATION_PER_MM * depth)
        values = np.concatenate([share * seen for share in shares])
        summed = np.bincount(pixels, values, SLABS * grid.rows * grid.columns)
        slabs = summed.astype(np.float32).reshape(SLABS, *grid.shape)
        slabs[int(np.abs(middle - np.sign(face) * SOFT_TISSUE_MM).argmin())] += tissue * soft_pixel
        sigma = scene.collimator.sigma_mm(np.abs(face - middle))
        views.append(_blur_sum(slabs, sigma, grid))
    return np.stack(views)


def _places(points: np.ndarray, scene: Scene) -> tuple[np.ndarray, list[np.ndarray]]:
    """Where the four pixels of each point lie in the slab stack, and their shares."""
    grid = scene.grid
    low, high = SLAB_LIMITS_MM
    slab = ((points[:, 1] - low) * (SLABS / (high - low))).astype(np.int32)
    first = np.clip(slab, 0, SLABS - 1) * (grid.rows * grid.columns)
    row, column = grid.row(points[:, 2] + scene.top_mm), grid.column(points[:, 0])
    pixels, shares = four_pixels(row, column, grid.shape)
    return np.concatenate([first + pixel for pixel in pixels]), shares


def _blur_sum(slabs: np.ndarray, sigma_mm: np.ndarray, grid: Grid) -> np.ndarray:
    spectrum = np.asarray(scipy.fft.rfft2(slabs, overwrite_x=True))
    squared = _squared_frequency(grid)
    total = np.zeros(spectrum.shape[1:], np.complex64)
    for part, sigma in zip(spectrum, sigma_mm, strict=True):
        total += part * np.exp(np.float32(-2 * np.pi**2 * sigma**2) * squared)
    return np.maximum(np.asarray(scipy.fft.irfft2(total, s=grid.shape)), 0)


def add_scatter(primary: np.ndarray, ratio: float, grid: Grid) -> np.ndarray:
    """Adds scatter of `ratio` times the primary's sum to views (2, rows, columns)."""
    spectrum = np.asarray(scipy.fft.rfft2(primary))
    spectrum *= 1 + np.float32(ratio) * _scatter_spectrum(grid)
    return np.maximum(np.asarray(scipy.fft.irfft2(spectrum, s=grid.shape)), 0)


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
