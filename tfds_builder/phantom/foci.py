"""Lesions and harmless foci as the two cameras see them, and the masks of the true lesions.

In: the primary views of a patient without foci, his condition, the scene. Out: foci added in place,
masks.
"""

import numpy as np

from tfds_builder.phantom.camera import ATTENUATION_PER_MM, Scene, depths
from tfds_builder.phantom.disease import Condition, Finding, Focus

MASK_SHARE = 0.35
"""A pixel belongs to a lesion where the lesion gives at least this share of its own peak."""
VISIBLE_SHARE = 0.25
"""A lesion is marked in a view only if its peak is at least this share of its surroundings."""


def add_findings(
    primary: np.ndarray, condition: Condition, points: np.ndarray, scene: Scene
) -> np.ndarray:
    """Adds all hot foci to the views (in place) and returns the masks of the true lesions."""
    surroundings = primary.copy()
    masks = np.zeros(primary.shape, np.uint8)
    strongest = np.zeros(primary.shape, np.float32)
    for finding in condition.findings:
        patches = [_focus_patches(f, points, scene, surroundings) for f in finding.foci]
        for view in range(2):
            given = np.zeros(primary.shape[1:], np.float32) if finding.number else None
            for window, images in patches:
                if not finding.cold:
                    primary[view][window] += images[view]
                if given is not None:
                    given[window] += images[view]
            if given is not None:
                _mark(finding, given, surroundings[view], strongest[view], masks[view])
    return masks


def _mark(
    finding: Finding,
    given: np.ndarray,
    around: np.ndarray,
    strongest: np.ndarray,
    mask: np.ndarray,
) -> None:
    peak = np.unravel_index(int(given.argmax()), given.shape)
    if given[peak] < VISIBLE_SHARE * around[peak] or given[peak] <= 0:
        return
    inside = (given >= MASK_SHARE * given[peak]) & (given > strongest)
    mask[inside] = finding.number
    strongest[inside] = given[inside]


def _focus_patches(
    focus: Focus,
    points: np.ndarray,
    scene: Scene,
    surroundings: np.ndarray,
) -> tuple[tuple[slice, slice], list[np.ndarray]]:
    """The focus as both views see it: one window of the image and two patches of that window."""
    place = points[focus.point] + np.asarray(focus.offset_mm, np.float32)
    depth = [float(d[0]) for d in depths(place[None], scene)]
    grid = scene.grid
    row, column = float(grid.row(place[2] + scene.top_mm)), float(grid.column(place[0]))
    reach = int(np.ceil(4 * (max(focus.sigma_mm) + 4) / grid.pixel_mm))
    window = (
        slice(max(0, int(row) - reach), min(grid.rows, int(row) + reach + 1)),
        slice(max(0, int(column) - reach), min(grid.columns, int(column) + reach + 1)),
    )
    rows = (np.arange(window[0].start, window[0].stop) - row) * grid.pixel_mm
    columns = (np.arange(window[1].start, window[1].stop) - column) * grid.pixel_mm
    near = (
        slice(max(0, int(row) - 2), int(row) + 4),
        slice(max(0, int(column) - 2), int(column) + 4),
    )
    units, activities = [], []
    for view in range(2):
        blur = scene.collimator.sigma_mm(abs(scene.faces[view] - place[1]))
        wide, tall = np.hypot(focus.sigma_mm[0], blur), np.hypot(focus.sigma_mm[2], blur)
        peak = np.exp(-ATTENUATION_PER_MM * depth[view]) / (wide * tall)
        shape = np.exp(-0.5 * (rows / tall) ** 2)[:, None] * np.exp(-0.5 * (columns / wide) ** 2)
        units.append(peak * shape)
        around = surroundings[view][near]
        activities.append(float(around.mean()) / peak if around.size else 0.0)
    activity = (focus.ratio - 1) * min(activities)
    return window, [(activity * unit).astype(np.float32) for unit in units]
