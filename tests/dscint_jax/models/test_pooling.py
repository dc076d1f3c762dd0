import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dscint_jax.models import layers, pooling
from tfds_builder.commandline.errors import UserError

WINDOWS = [(3, 2, 0), (3, 2, 1), (2, 2, 0), (3, 1, 1)]


def _maps(seed, shape=(2, 9, 6, 3)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _windows(x, window, stride, padding, fill):
    """Every window of a map, as (position, values); padding filled in."""
    padded = np.pad(
        x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=fill
    )
    rows = range(0, padded.shape[1] - window + 1, stride)
    columns = range(0, padded.shape[2] - window + 1, stride)
    return padded, [
        [
            (row, column, padded[:, row : row + window, column : column + window])
            for column in columns
        ]
        for row in rows
    ]


@pytest.mark.parametrize(("window", "stride", "padding"), WINDOWS)
def test_max_pool_takes_the_maximum_of_each_window(window, stride, padding):
    x = _maps(0)
    _, windows = _windows(x, window, stride, padding, -np.inf)
    expected = np.stack([np.stack([w.max((1, 2)) for *_, w in row], 1) for row in windows], 1)
    np.testing.assert_array_equal(pooling.max_pool(jnp.array(x), window, stride, padding), expected)


@pytest.mark.parametrize(("window", "stride", "padding"), WINDOWS)
def test_gradient_of_max_pool_goes_to_the_first_of_equal_maxima(window, stride, padding):
    # Few values, so that most windows hold their maximum more than once.
    x = np.random.default_rng(1).integers(0, 3, (2, 9, 6, 3)).astype(np.float32)
    weights = _maps(2, pooling.max_pool(jnp.array(x), window, stride, padding).shape)
    found = jax.grad(lambda x: (pooling.max_pool(x, window, stride, padding) * weights).sum())(
        jnp.array(x)
    )
    padded, windows = _windows(x, window, stride, padding, -np.inf)
    expected = np.zeros_like(padded)
    for i, line in enumerate(windows):
        for j, (row, column, values) in enumerate(line):
            for n in range(x.shape[0]):
                for c in range(x.shape[-1]):
                    k = values[n, ..., c].argmax()
                    expected[n, row + k // window, column + k % window, c] += weights[n, i, j, c]
    end = (-padding or None,) * 2
    expected = expected[:, padding : end[0], padding : end[1]]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("window", "stride", "padding"), WINDOWS)
def test_average_pool_leaves_padding_out(window, stride, padding):
    x = _maps(3)
    _, windows = _windows(x, window, stride, padding, np.nan)
    expected = np.stack(
        [np.stack([np.nanmean(w, (1, 2)) for *_, w in row], 1) for row in windows], 1
    )
    found = pooling.average_pool(jnp.array(x), window, stride, padding)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_gradient_of_average_pool_is_shared_by_the_window():
    x, weights = jnp.array(_maps(3)), jnp.array(_maps(8, (2, 4, 3, 3)))
    found = jax.jit(jax.grad(lambda x: (pooling.average_pool(x, 2, 2) * weights).sum()))(x)
    expected = np.zeros(x.shape, np.float32)
    expected[:, :8, :6] = np.repeat(np.repeat(weights, 2, 1), 2, 2) / 4
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("pool", [pooling.max_pool, pooling.average_pool])
def test_map_smaller_than_the_window_is_pooled_as_a_whole(pool):
    x = jnp.array(_maps(4, (2, 5, 1, 3)))
    found = pool(x, 3, 2)
    assert found.shape == (2, 2, 1, 3)
    reduce = jnp.max if pool is pooling.max_pool else jnp.mean
    np.testing.assert_allclose(found[:, 0, 0], reduce(x[:, :3], axis=(1, 2)), rtol=1e-6)


@pytest.mark.parametrize("size", [(9, 6), (3, 3), (4, 4), (12, 7), (1, 1)])
def test_adaptive_cells_span_their_share_of_the_map(size):
    x = _maps(5)
    found = pooling.adaptive_average_pool(jnp.array(x), size)
    assert found.shape == (2, *size, 3)
    for i in range(size[0]):
        for j in range(size[1]):
            rows = slice(int(np.floor(i * 9 / size[0])), int(np.ceil((i + 1) * 9 / size[0])))
            columns = slice(int(np.floor(j * 6 / size[1])), int(np.ceil((j + 1) * 6 / size[1])))
            expected = x[:, rows, columns].mean((1, 2))
            np.testing.assert_allclose(found[:, i, j], expected, rtol=1e-4, atol=1e-5)


def test_regions_are_pooled_each_for_itself():
    x = jnp.array(_maps(6, (2, 9, 5, 3)))
    mean, maximum = (pooling.pool_regions(x, (2, 2), p) for p in ("average", "max"))
    np.testing.assert_allclose(mean[:, 1, 0], x[:, 4:, :2].mean((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(maximum[:, 0, 1], x[:, :4, 2:].max((1, 2)))
    both = pooling.pool_regions(x, (1, 1), "average_max")[:, 0, 0]
    np.testing.assert_allclose(both[:, :3], x.mean((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(both[:, 3:], x.max((1, 2)))


@pytest.mark.parametrize("axes", [(1,), (3,), (1, 2), (2, 4), (0, 1, 2, 3, 4)])
def test_gradient_of_the_largest_goes_whole_to_the_first_of_equals(axes):
    random = np.random.default_rng(4)
    # Few values, so that most maxima stand in several places.
    x = random.integers(0, 3, (2, 4, 3, 5, 2)).astype(np.float32)
    weights = random.random(x.max(axes).shape).astype(np.float32)
    found = jax.jit(jax.grad(lambda x: (pooling.largest(x, axes) * weights).sum()))(x)
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    rows = x.transpose(*kept, *axes).reshape(weights.size, -1)
    expected = np.zeros_like(rows)
    expected[np.arange(weights.size), rows.argmax(1)] = weights.ravel()
    found = np.transpose(found, (*kept, *axes)).reshape(rows.shape)
    np.testing.assert_array_equal(found, expected)


def test_gradient_of_a_regions_maximum_goes_whole_to_one_of_its_places():
    random = np.random.default_rng(4)
    x = jnp.array(random.integers(0, 3, (2, 6, 4, 3)), jnp.float32)
    weights = jnp.array(random.random((2, 3, 2, 3)), jnp.float32)
    gradient = jax.grad(lambda x: (pooling.pool_regions(x, (3, 2), "max") * weights).sum())(x)
    regions = [
        (b, slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2), c, (b, i, j, c))
        for b, i, j, c in np.ndindex(2, 3, 2, 3)
    ]
    for b, rows, columns, c, place in regions:
        inside, given = x[b, rows, columns, c], gradient[b, rows, columns, c]
        assert np.count_nonzero(given) == 1
        assert inside[given != 0] == inside.max()
        assert given.sum() == weights[place]


def test_map_too_small_for_the_regions_is_named():
    with pytest.raises(UserError, match=r"regions 4x2 do not fit the last map of 2x1"):
        pooling.pool_regions(jnp.zeros((1, 2, 1, 3)), (4, 2), "max")


def test_downsampling_takes_the_maximum_of_each_block():
    x = jnp.array(_maps(7, (2, 7, 6, 3)))
    small = pooling.downsample_max(x)
    assert small.shape == (2, 3, 3, 3)
    np.testing.assert_array_equal(small[:, 2, 1], x[:, 4:6, 2:4].max((1, 2)))


def test_gradient_of_downsampling_leaves_an_odd_row_and_column_out():
    x = jnp.array(_maps(7, (2, 7, 5, 3)))
    found = jax.grad(lambda x: pooling.downsample_max(x).sum())(x)
    assert np.count_nonzero(found[:, :6, :4]) == 2 * 3 * 2 * 3
    assert np.count_nonzero(found) == 2 * 3 * 2 * 3


def test_map_that_cannot_be_halved_is_named():
    with pytest.raises(UserError, match=r"pool_after: a map of 1x4 cannot be halved"):
        pooling.downsample_max(jnp.zeros((1, 1, 4, 3)))


def test_no_window_loses_its_gradient_when_the_map_is_computed_twice():
    # XLA fuses a normalised map into each of its users; every positive maximum still counts once.
    images = jnp.array(_maps(9, (4, 160, 128, 3)))
    rngs = nnx.Rngs(params=0)
    conv = layers.Conv(3, 64, 7, stride=2, padding=3, dtype=jnp.float32, rngs=rngs)
    stem = nnx.List([conv, layers.BatchNorm(64, dtype=jnp.float32, rngs=rngs), nnx.relu])
    structure, params, batch_stats = nnx.split(stem, nnx.Param, ...)

    @jax.jit
    def gradient(params):
        def total(params):
            maps = layers.apply_layers(nnx.merge(structure, params, batch_stats, copy=True), images)
            pooled = pooling.max_pool(maps, 3, 2, 1)
            return pooled.sum(), (pooled > 0).sum((0, 1, 2))

        return jax.grad(total, has_aux=True)(params)

    found, windows = gradient(params)
    np.testing.assert_array_equal(found[1].bias[...], windows)
