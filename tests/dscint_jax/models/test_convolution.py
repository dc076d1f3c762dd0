import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

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
        jax.jit(jax.grad(lambda x, w, f=f: (f(stride, pads, x, w) * target).sum(), (0, 1)))(
            x, weights
        )
        for f in (convolution._convolve, convolution._convolve_by_products)
    ]
    for expected, found in zip(*gradients, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, (1, 7)])
@pytest.mark.parametrize("size", [(4, 1), (1, 2), (3, 2), (5, 5)])
def test_small_maps_have_the_values_and_gradients_of_xla(size, kernel, stride):
    window = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    random = np.random.default_rng(5)
    x = jnp.array(random.normal(size=(3, *size, 6)).astype(np.float32))
    weights = jnp.array(random.normal(size=(*window, 6, 5)).astype(np.float32))
    pads = convolution.pads_of(size, window, stride, (window[0] // 2, window[1] // 2))
    found = {
        form: jax.jit(
            jax.value_and_grad(lambda x, w, f=form: (f(stride, pads, x, w) ** 2).sum(), (0, 1))
        )(x, weights)
        for form in (
            convolution._convolve,
            convolution._convolve_as_one_product,
            convolution._convolve_by_products,
        )
    }
    expected = jax.tree.leaves(found.pop(convolution._convolve))
    for values in found.values():
        for ours, theirs in zip(jax.tree.leaves(values), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_all_forms_agree_on_random_shapes(seed):
    random = np.random.default_rng(seed)
    # Products over one image, some or all of the batch: maps of a few to 2000 positions.
    batch, height, width = (int(random.integers(1, most)) for most in (9, 65, 33))
    channels, features, rows, columns = (int(n) for n in random.integers(1, 8, 4))
    stride = int(random.integers(1, 4))
    padding = [tuple(random.integers(0, 4, 2).tolist()), "SAME"][seed % 2]
    x = jnp.array(random.normal(size=(batch, height, width, channels)).astype(np.float32))
    weights = jnp.array(random.normal(size=(rows, columns, channels, features)).astype(np.float32))
    pads = convolution.pads_of((height, width), (rows, columns), stride, padding)
    y = convolution._convolve(stride, pads, x, weights)
    target = jnp.array(random.normal(size=y.shape).astype(np.float32))

    def with_gradients(form):
        y, vjp = jax.vjp(lambda x, w: form(stride, pads, x, w), x, weights)
        return y, *vjp(target)

    expected, *found = (
        jax.jit(functools.partial(with_gradients, form))()
        for form in (
            convolution._convolve,
            convolution._convolve_as_one_product,
            convolution._convolve_by_products,
        )
    )
    for arrays in found:
        for ours, theirs in zip(arrays, expected, strict=True):
            assert jnp.linalg.norm(ours - theirs) <= 1e-5 * jnp.linalg.norm(theirs)


@pytest.mark.parametrize(
    ("batch", "size"), [(6, (16, 20)), (5, (16, 20)), (4, (40, 30)), (12, (16, 8))]
)
def test_images_that_share_a_product_give_the_gradient_of_xla(batch, size):
    random = np.random.default_rng(batch)
    x = jnp.array(random.normal(size=(batch, *size, 3)).astype(np.float32))
    weights = jnp.array(random.normal(size=(3, 3, 3, 4)).astype(np.float32))
    pads = convolution.pads_of(size, (3, 3), 1, "SAME")
    target = jnp.array(random.normal(size=(batch, *size, 4)).astype(np.float32))
    _, vjp = jax.vjp(lambda w: convolution._convolve(1, pads, x, w), weights)
    found = convolution.weight_gradient(x, target, (3, 3), 1, pads)
    assert jnp.linalg.norm(found - vjp(target)[0]) <= 1e-5 * jnp.linalg.norm(found)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(11, 4, 2), (3, 1, 1), (5, 3, "SAME")])
def test_kernels_on_one_channel_have_the_gradient_of_xla(kernel, stride, padding):
    random = np.random.default_rng(kernel)
    x = jnp.array(random.normal(size=(5, 45, 23, 1)).astype(np.float32))
    weights = jnp.array(random.normal(size=(kernel, kernel, 1, 6)).astype(np.float32))
    pads = convolution.pads_of((45, 23), (kernel, kernel), stride, padding)
    y, vjp = jax.vjp(lambda w: convolution._convolve(stride, pads, x, w), weights)
    target = jnp.array(random.normal(size=y.shape).astype(np.float32))
    found = convolution.weight_gradient(x, target, (kernel, kernel), stride, pads)
    assert jnp.linalg.norm(found - vjp(target)[0]) <= 1e-5 * jnp.linalg.norm(found)


def test_both_forward_passes_are_one():
    x, weights = _arrays(1, 16, 8, 3, 4, 3)
    pads = ((1, 1), (0, 1))
    np.testing.assert_array_equal(
        convolution._convolve(2, pads, x, weights),
        convolution._convolve_by_products(2, pads, x, weights),
    )


def _gradient_of_kernel(x, weights):
    return jax.grad(lambda w: convolution.convolve(x, w, 1).sum())(weights)


def test_what_the_compiler_divides_over_devices_keeps_the_gradient_that_can_be_divided():
    x, weights = _arrays(2, 32, 32, 8, 16, 3)
    assert "while" not in jax.jit(_gradient_of_kernel).lower(x, weights).as_text()


def test_each_of_several_devices_has_the_fast_gradient_of_its_own_images():
    x, weights = _arrays(2, 32, 32, 8, 16, 3)
    x = jnp.concatenate([x, x + 1])
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
    here, everywhere = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    program = jax.jit(
        jax.shard_map(
            lambda x, w: jax.lax.psum(_gradient_of_kernel(x, w), "data"),
            mesh=mesh,
            in_specs=(here, everywhere),
            out_specs=everywhere,
            check_vma=False,
        )
    )
    assert "while" in program.lower(x, weights).as_text()
    found, expected = program(x, weights), _gradient_of_kernel(x, weights)
    assert jnp.linalg.norm(found - expected) <= 1e-5 * jnp.linalg.norm(expected)


def test_a_small_convolution_has_the_form_that_compiles_fast(monkeypatch):
    monkeypatch.setattr(convolution, "is_on_one_cpu", lambda: True)
    for size, fast in ((8, False), (32, True)):
        x, weights = _arrays(2, size, size, 8, 12, 3)
        text = jax.jit(_gradient_of_kernel).lower(x, weights).as_text()
        assert ("while" in text) == fast
