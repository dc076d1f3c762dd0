import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dscint_jax.models import convolution


def _arrays(seed, height, width, channels, features, kernel):
    random = np.random.default_rng(seed)
    x = random.normal(size=(3, height, width, channels)).astype(np.float32)
    weights = random.normal(size=(kernel, kernel, channels, features)).astype(np.float32)
    return jnp.array(x), jnp.array(weights)


CASES = itertools.product(["SAME", 0, (1, 2)], [(16, 8), (11, 9)], [1, 3, 4, 7], [1, 2])


@pytest.mark.parametrize(
    ("padding", "size", "kernel", "stride"),
    # Every fifth has each padding, size, kernel and stride.
    [
        pytest.param(*case, marks=pytest.mark.exhaustive if n % 5 else ())
        for n, case in enumerate(CASES)
    ],
)
def test_products_give_the_gradients_of_xla(padding, size, kernel, stride):
    height, width = size
    x, weights = _arrays(kernel, height, width, 2, 5, kernel)
    pads = convolution.pads_of((height, width), (kernel, kernel), stride, padding)
    target = jnp.array(
        np.random.default_rng(9).normal(size=convolution._convolve(stride, pads, x, weights).shape)
    ).astype(jnp.float32)
    gradients = [
        jax.grad(lambda x, w, f=f: (f(stride, pads, x, w) * target).sum(), (0, 1))(x, weights)
        for f in (convolution._convolve, convolution._convolve_by_products)
    ]
    for expected, found in zip(*gradients, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_both_forward_passes_are_one():
    x, weights = _arrays(1, 16, 8, 3, 4, 3)
    pads = ((1, 1), (0, 1))
    np.testing.assert_array_equal(
        convolution._convolve(2, pads, x, weights),
        convolution._convolve_by_products(2, pads, x, weights),
    )


def test_several_devices_keep_the_gradient_that_can_be_split():
    x, weights = _arrays(2, 8, 8, 2, 2, 3)
    program = jax.jit(jax.grad(lambda w: convolution.convolve(x, w, 1).sum())).lower(weights)
    assert "while" not in program.as_text()
