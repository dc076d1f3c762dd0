import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dscint_jax.models import layers
from tfds_builder.commandline.errors import UserError


def _features(seed, shape=(4, 32, 32, 64)):
    return jnp.array(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_standardised_kernels_keep_the_spread_through_relu():
    conv = layers.StandardisedConv(
        64, 64, 3, stride=1, use_bias=True, dtype=jnp.float32, rngs=nnx.Rngs(params=7)
    )
    conv.kernel[...] = 5.0 * conv.kernel[...] + 0.3
    assert abs(float(nnx.relu(conv(_features(7))).std()) - 1) < 0.1


def test_convolution_pads_a_map_up_to_its_kernel():
    conv = layers.Conv(2, 3, 3, dtype=jnp.float32, rngs=nnx.Rngs(params=0))
    x = _features(1, (2, 5, 1, 2))
    assert conv(x).shape == (2, 3, 1, 3)
    padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    np.testing.assert_allclose(conv(x), conv(padded), rtol=1e-6)


def test_wrong_number_of_channels_is_named():
    conv = layers.Conv(3, 3, 3, dtype=jnp.float32, rngs=nnx.Rngs(params=0))
    with pytest.raises(UserError, match=r"3 channel\(s\) and got 1.*in_channels"):
        conv(_features(2, (1, 8, 8, 1)))


@pytest.mark.parametrize(
    ("norm", "axes"), [("layer", (1, 2, 3)), ("instance", (1, 2)), ("batch", (0, 1, 2))]
)
def test_norms_are_over_the_axes_they_are_named_after(norm, axes):
    module = layers.NORMS[norm](64, dtype=jnp.float32, rngs=nnx.Rngs(params=0))
    module.train()
    x = 3 * _features(3, (4, 6, 5, 64)) + jnp.arange(64.0)[None, None, None]
    expected = (x - x.mean(axes, keepdims=True)) / x.std(axes, keepdims=True)
    np.testing.assert_allclose(module(x), expected, atol=2e-3)


@pytest.mark.parametrize(("features", "groups"), [(64, 4), (24, 1), (32, 2), (48, 3), (8, 1)])
def test_groups_have_sixteen_channels_or_more(features, groups):
    norm = layers.group_norm(features, dtype=jnp.float32, rngs=nnx.Rngs(params=0))
    assert norm.num_groups == groups


def test_flattened_features_come_channel_by_channel():
    x = _features(4, (2, 3, 4, 5))
    np.testing.assert_array_equal(layers.flatten(x)[:, :12], x[..., 0].reshape(2, 12))


def test_running_statistics_move_a_tenth_to_the_mean_and_the_unbiased_variance():
    norm = layers.BatchNorm(3, dtype=jnp.float32, rngs=nnx.Rngs(params=0))
    norm.train()
    x = 2 * np.asarray(_features(5, (2, 3, 2, 3))) + 1
    norm(jnp.array(x))
    mean, variance = (np.asarray(statistic[...]) for statistic in (norm.mean, norm.var))
    np.testing.assert_allclose(mean, 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(variance, 0.9 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-5)
    norm.eval()
    expected = (x - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(norm(jnp.array(x)), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(norm.mean[...], mean)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_of_bfloat16_features_is_computed_in_float32(train):
    exact, rounded = (
        layers.BatchNorm(3, dtype=dtype, rngs=nnx.Rngs(params=0))
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    x = (_features(6, (4, 8, 8, 3)) + 20).astype(jnp.bfloat16)
    for norm in (exact, rounded):
        norm.mean[...] = jnp.full(3, 20.03)
        (norm.train if train else norm.eval)()
    result = rounded(x)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_array_equal(result, exact(x).astype(jnp.bfloat16))
    np.testing.assert_array_equal(rounded.var[...], exact.var[...])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_batch_norm_has_the_gradients_of_its_formula(dtype):
    x, target = (_features(seed, (3, 6, 4, 5)).astype(dtype) for seed in (5, 6))
    scale, bias = 1 + 0.5 * _features(7, (2, 5))

    def ours(x, scale, bias):
        norm = layers.BatchNorm(5, dtype=dtype, rngs=nnx.Rngs(params=0))
        norm.train()
        norm.scale.set_value(scale)
        norm.bias.set_value(bias)
        return norm(x)

    def formula(x, scale, bias):
        x = x.astype(jnp.float32)
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        rows = (x.reshape(-1, 5) - mean[None]) / jnp.sqrt(variance + 1e-5)[None]
        return (rows * scale[None] + bias[None]).reshape(x.shape).astype(dtype)

    results = []
    for function in (ours, formula):
        y, vjp = jax.vjp(function, x, scale, bias)
        results.append((y, *vjp(target)))
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        found, expected = found.astype(jnp.float32), expected.astype(jnp.float32)
        assert jnp.linalg.norm(found - expected) <= tolerance * jnp.linalg.norm(expected)


@pytest.mark.parametrize("features", [64, 48, 7])
def test_a_wide_layer_is_a_linear_layer(features, monkeypatch):
    monkeypatch.setattr(layers, "is_on_one_cpu", lambda: True)
    wide, plain = (
        kind(features, 9, rngs=nnx.Rngs(params=0)) for kind in (layers.WideLinear, nnx.Linear)
    )
    x, target = _features(8, (4, features)), _features(9, (4, 9))
    results = []
    for layer in (wide, plain):
        structure, state = nnx.split(layer)
        y, vjp = jax.vjp(lambda state, x, to=structure: nnx.merge(to, state)(x), state, x)
        results.append(jax.tree.leaves((y, vjp(target))))
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
