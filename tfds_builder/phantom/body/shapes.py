"""Primitives of the phantom: ellipsoids, tubes and sheets as evenly spread points in millimetres.

Each returns points of shape (n, 3) and one volume in mm3 that the points share equally.
"""

import functools

import numpy as np
from scipy.integrate import cumulative_trapezoid
from scipy.interpolate import PchipInterpolator

POINTS_PER_MM2 = 0.4
"""Points for each mm2 of a primitive's projected area: about two in a pixel of 2.4 mm."""

Cloud = tuple[np.ndarray, float]


@functools.lru_cache(maxsize=32)
def even_samples(count: int) -> np.ndarray:
    """The first `count` points of the three-dimensional R sequence, shape (count, 3) in [0, 1).

    Source: M. Roberts, "The unreasonable effectiveness of quasirandom sequences" (2018); the base
    is the real root of x**4 = x + 1.
    """
    steps = 1.2207440846057596 ** -np.arange(1.0, 4.0)
    return np.mod(0.5 + np.arange(1, count + 1)[:, None] * steps, 1.0)


def _count(area: float) -> int:
    return int(min(max(48, POINTS_PER_MM2 * area), 7000))


def ellipsoid(
    center: tuple[float, float, float], radii: tuple[float, float, float], hollow: float = 0.0
) -> Cloud:
    """An ellipsoid, or a shell whose inner radii are `hollow` times the outer ones."""
    large = sorted(radii)[1:]
    unit = even_samples(_count(np.pi * large[0] * large[1]))
    radius = np.cbrt(hollow**3 + (1 - hollow**3) * unit[:, 0])
    height = 2 * unit[:, 1] - 1
    ring = np.sqrt(1 - height**2)
    turn = 2 * np.pi * unit[:, 2]
    ball = np.stack([ring * np.cos(turn), ring * np.sin(turn), height], axis=1)
    volume = 4 / 3 * np.pi * float(np.prod(radii)) * (1 - hollow**3)
    return np.asarray(center) + radius[:, None] * ball * np.asarray(radii), volume


def tube(
    path: np.ndarray | list,
    radii: np.ndarray | list | float,
    flat: float = 1.0,
    hollow: float = 0.0,
    wide: tuple[float, float, float] = (1.0, 0.0, 0.0),
) -> Cloud:
    """A tube along `path` (k, 3) with the radius `radii` at each vertex.

    The radius runs along `wide` (made perpendicular to the path); across, it is `flat` times that.
    """
    path = np.asarray(path, float)
    radii = np.broadcast_to(np.asarray(radii, float), len(path))
    along = _lengths(path)
    length = along[-1]
    fine = np.linspace(0, length, 200)
    profile = np.interp(fine, along, radii)
    share = cumulative_trapezoid(profile**2, initial=0)
    unit = even_samples(_count(2 * float(profile.mean()) * length))
    position = np.interp(unit[:, 0] * share[-1], share, fine)
    center, tangent = (
        np.stack([np.interp(position, along, values[:, axis]) for axis in range(3)], axis=1)
        for values in (path, np.gradient(path, along, axis=0))
    )
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-9
    first = np.asarray(wide) - tangent * (tangent @ np.asarray(wide))[:, None]
    first /= np.linalg.norm(first, axis=1, keepdims=True) + 1e-9
    second = np.cross(tangent, first)
    radius = np.sqrt(hollow**2 + (1 - hollow**2) * unit[:, 1]) * np.interp(position, along, radii)
    turn = 2 * np.pi * unit[:, 2]
    points = center + (radius * np.cos(turn))[:, None] * first
    points += (flat * radius * np.sin(turn))[:, None] * second
    volume = np.pi * flat * (1 - hollow**2) * float((profile**2).mean()) * length
    return points, volume


def _lengths(path: np.ndarray) -> np.ndarray:
    """Length of the path up to each of its vertices, shape (k,)."""
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])


def sheet(grid: np.ndarray | list, thickness: float) -> Cloud:
    """A curved sheet through a 3 x 3 grid of points (quadratic in both directions)."""
    grid = np.asarray(grid, float).reshape(3, 3, 3)
    normal = np.cross(grid[2, 1] - grid[0, 1], grid[1, 2] - grid[1, 0])
    area = float(np.linalg.norm(normal))
    unit = even_samples(_count(area))
    rows, columns = _quadratic(unit[:, 0]), _quadratic(unit[:, 1])
    points = np.einsum("ni,nj,ijk->nk", rows, columns, grid)
    points += (unit[:, 2:] - 0.5) * thickness * (normal / area)
    return points, area * thickness


def _quadratic(u: np.ndarray) -> np.ndarray:
    return np.stack([(1 - u) * (1 - 2 * u), 4 * u * (1 - u), u * (2 * u - 1)], axis=1)


def arc(points: list, steps: int = 40) -> np.ndarray:
    """A smooth path (steps, 3) through the given points (cubic by chord length)."""
    path = np.asarray(points, float)
    chord = _lengths(path)
    return PchipInterpolator(chord, path, axis=0)(np.linspace(0, chord[-1], steps))
