import itertools

import numpy as np
import pytest
from scipy.stats import rankdata

from dscint_jax.explain.scores import (
    BASELINES,
    Region,
    baseline_maps,
    energy,
    pointing,
    rank_correlation,
    region_of,
)

SIDE, SPACING = 4, 2.0


def _lesions(seed, views=2, shape=(64, 32)):
    """Random rectangles."""
    random = np.random.default_rng(seed)
    lesion = np.zeros((views, *shape), bool)
    for view, _ in itertools.product(range(views), range(3)):
        row, column = (int(random.integers(0, size - 6)) for size in shape)
        lesion[view, row : row + int(random.integers(1, 7)), column : column + 5] = True
    return lesion


def _heat(seed, views=2, shape=(16, 8)):
    return np.random.default_rng(seed).random((views, *shape)).astype(np.float32)


def _region(lesion, tolerance):
    return region_of(lesion, np.full(len(lesion), SPACING), SIDE, tolerance)


def _is_hit(lesion, view, row, column, tolerance):
    """Whether any small pixel of which a part is lesion has its middle so near, one by one."""
    for other in np.ndindex(lesion.shape[1] // SIDE, lesion.shape[2] // SIDE):
        block = lesion[view, other[0] * SIDE :, other[1] * SIDE :][:SIDE, :SIDE]
        far = np.hypot(other[0] - row, other[1] - column) * SIDE * SPACING
        if block.any() and far <= tolerance:
            return True
    return False


@pytest.mark.parametrize("tolerance", [0.0, 8.0, 20.0])
def test_pointing_is_whether_the_maximum_is_near_a_lesion(tolerance):
    hits = []
    for seed in range(30):
        lesion, heat = _lesions(seed), _heat(seed)
        view, row, column = np.unravel_index(heat.argmax(), heat.shape)
        expected = _is_hit(lesion, view, row, column, tolerance)
        assert pointing(heat, _region(lesion, tolerance)) == expected
        hits.append(expected)
    assert 0 < np.mean(hits) < 1


def test_energy_is_the_share_of_the_map_spread_over_the_recorded_pixels():
    for seed in range(10):
        lesion, heat = _lesions(seed), _heat(seed)
        spread = heat.repeat(SIDE, 1).repeat(SIDE, 2)
        expected = spread[lesion].sum() / spread.sum()
        assert energy(heat, _region(lesion, 0.0)) == pytest.approx(expected, rel=1e-5)


def test_equal_maxima_count_in_the_mean_and_a_map_of_zeros_is_chance():
    lesion = _lesions(1)
    region = _region(lesion, 8.0)
    zeros = np.zeros(region.share.shape)
    assert pointing(zeros, region) == pytest.approx(region.near.mean())
    assert energy(zeros, region) == pytest.approx(lesion.mean())
    two = zeros.copy()
    two[0][tuple(np.argwhere(region.near[0])[0])] = 1
    two[1][tuple(np.argwhere(~region.near[1])[0])] = 1 - 1e-9
    assert pointing(two, region) == 0.5


def test_lesions_of_one_view_are_not_near_to_anything_in_the_other():
    lesion = _lesions(2)
    lesion[1] = False
    region = region_of(lesion, np.array([SPACING, np.nan]), SIDE, 1e9)
    assert region.near[0].all()
    assert not region.near[1].any()


def _body(random):
    """Counts of a body, an ellipse, and which pixels are surely in it or surely not."""
    rows, columns = np.mgrid[:64, :32] + 0.5
    radius = np.hypot((rows - 30) / 26, (columns - 15) / 10)
    return random.poisson(np.where(radius < 1, 30.0, 0.2)), radius < 0.9, radius > 1.15


def test_random_is_the_mean_over_all_pixels_of_the_body():
    random = np.random.default_rng(3)
    counts, inside, outside = _body(random)
    maps = baseline_maps(np.sqrt(counts / 30.0)[None], counts[None])
    assert tuple(maps) == BASELINES
    body = maps["random"][0] > 0
    assert body[inside].all()
    assert not body[outside].any()
    lesion = np.zeros((1, 64, 32), bool)
    lesion[0, 10:14, 12:16] = True
    region = region_of(lesion, np.array([3.0]), 1, 6.0)
    hits = [region.near[0][tuple(pixel)] for pixel in np.argwhere(body)]
    assert pointing(maps["random"], region) == pytest.approx(np.mean(hits))
    assert energy(maps["random"], region) == pytest.approx(lesion[0][body].mean())


def test_centre_points_at_the_middle_and_brightest_at_the_most_counts():
    random = np.random.default_rng(4)
    counts, *_ = _body(random)
    counts[50, 12] = 90
    maps = baseline_maps(np.sqrt(counts / 30.0)[None], counts[None])
    top = np.unravel_index(maps["centre"][0].argmax(), counts.shape)
    assert np.hypot(top[0] - 29.5, top[1] - 14.5) < 1.5
    assert maps["centre"].max() == 1
    assert maps["centre"].min() == 0
    assert np.unravel_index(maps["brightest"][0].argmax(), counts.shape) == (50, 12)


def test_missing_view_is_no_place_to_point_at_and_both_middles_count_alike():
    random = np.random.default_rng(5)
    counts, *_ = _body(random)
    pair = np.stack([counts, np.zeros_like(counts)])
    maps = baseline_maps(np.sqrt(pair / 30.0), pair)
    for heat in maps.values():
        assert not heat[1].any()
    near = np.zeros((2, 64, 32), bool)
    near[0] = True
    both = np.stack([counts, _body(random)[0][:, ::-1]])
    maps = baseline_maps(np.sqrt(both / 30.0), both)
    assert pointing(maps["centre"], Region(near * 1.0, near)) == 0.5


def test_rank_correlation_is_that_of_ranks_over_the_views_that_are_there():
    heat, other = _heat(6), _heat(7) + _heat(6)
    views = np.ones(heat.shape)
    expected = np.corrcoef(rankdata(heat), rankdata(other))[0, 1]
    assert rank_correlation(heat, other, views) == pytest.approx(expected)
    views[1] = 0
    expected = np.corrcoef(rankdata(heat[0]), rankdata(other[0]))[0, 1]
    assert rank_correlation(heat, other, views) == pytest.approx(expected)
    assert np.isnan(rank_correlation(heat, np.zeros_like(heat), views))
