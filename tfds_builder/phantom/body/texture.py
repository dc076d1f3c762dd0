"""Uneven uptake: smooth random factors on bone and on soft tissue, around 1.

In: standard normal numbers of a patient. Out: factors at the points of the skeleton or at pixels.
"""

import functools

import numpy as np

from tfds_builder.phantom.body.skeleton import reference_skeleton
from tfds_builder.phantom.camera.grid import Grid

BONE_WAVES = 14
BONE_WAVELENGTHS_MM = (35.0, 160.0)
BONE_SPREAD = 0.12
"""Bone varies by this much from place to place, in waves of these lengths; each has two numbers."""

SOFT_SHAPE = (64, 18)
SOFT_CELL_MM = 42.0
SOFT_SPREAD = 0.07
"""Soft tissue varies by this much over lengths of about a cell; head to feet, right to left."""
_KERNEL_CELLS = 0.7


def bone_factors(texture: np.ndarray) -> np.ndarray:
    """Factor on the uptake at each point of the skeleton, (points,) float32.

    The texture has shape (2 * BONE_WAVES,).
    """
    waves = _waves()
    total = np.zeros(waves.shape[1], np.float32)
    scale = np.float32(BONE_SPREAD / BONE_WAVES**0.5)
    for wave, share in zip(waves, texture.astype(np.float32), strict=True):
        total += (scale * share) * wave
    return np.exp(total, out=total)


@functools.lru_cache(maxsize=1)
def _waves() -> np.ndarray:
    """Cosines and sines of fixed random waves at the reference's points, (2 * waves, points)."""
    rng = np.random.Generator(np.random.PCG64(0))
    direction = rng.standard_normal((BONE_WAVES, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    shortest, longest = np.log(BONE_WAVELENGTHS_MM)
    length = np.exp(rng.uniform(shortest, longest, BONE_WAVES))
    phase = reference_skeleton().points @ (2 * np.pi * direction / length[:, None]).T
    return np.ascontiguousarray(
        np.concatenate([np.cos(phase), np.sin(phase)], axis=1).T, np.float32
    )


def soft_factors(texture: np.ndarray, grid: Grid, top_mm: float) -> np.ndarray:
    """Factor on soft tissue at every pixel, (rows, columns) float32; it moves with the patient.

    The texture has shape SOFT_SHAPE.
    """
    rows = (grid.z_mm(np.arange(grid.rows)) - top_mm) / SOFT_CELL_MM + 8
    columns = grid.x_mm(np.arange(grid.columns)) / SOFT_CELL_MM + (texture.shape[1] - 1) / 2
    field = _kernel(rows, texture.shape[0]) @ texture @ _kernel(columns, texture.shape[1]).T
    return (1 + SOFT_SPREAD * np.clip(field, -2.5, 2.5)).astype(np.float32)


def _kernel(position: np.ndarray, cells: int) -> np.ndarray:
    """Weights (n, cells) that turn independent numbers into a smooth field of the same variance."""
    # Far outside all cells the weights would vanish, and their quotient with them.
    position = np.clip(position, -8, cells + 7)
    weights = np.exp(-0.5 * ((position[:, None] - np.arange(cells)) / _KERNEL_CELLS) ** 2)
    return weights / np.sqrt((weights**2).sum(axis=1, keepdims=True))
