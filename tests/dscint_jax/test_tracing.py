import jax
import jax.numpy as jnp
import numpy as np

from dscint_jax.tracing import follow


def _normalised(values, scale):
    return values / scale


def _loss(weights, batch):
    rows = _normalised(batch["x"], batch["s"][:, None])
    # Infinite where it is meant.
    padded = jnp.pad(rows, ((0, 0), (1, 1)), constant_values=-jnp.inf)
    pooled = jnp.maximum(padded[:, :-2], padded[:, 2:])
    hidden = jax.nn.relu(pooled @ weights)
    total, parts = jax.lax.scan(lambda sum, row: (sum + row.sum(), row * 2), 0.0, hidden)
    return total + jax.nn.logsumexp(parts)


def _follow(scale, value=0.0):
    batch = {"x": np.full((3, 4), value, np.float32), "s": np.array(scale, np.float32)}
    weights = np.ones((4, 3), np.float32)
    return follow(jax.value_and_grad(_loss), {"weights": weights, "batch": batch})


def test_values_are_those_of_the_function_and_finite_ones_have_no_origin():
    (loss, gradients), origins = _follow([1.0, 2.0, 3.0], value=1.0)
    batch = {"x": jnp.ones((3, 4)), "s": jnp.array([1.0, 2.0, 3.0])}
    expected = jax.value_and_grad(_loss)(jnp.ones((4, 3)), batch)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradients, expected[1], rtol=1e-6)
    assert origins == [None, None]


def test_origin_is_the_operation_that_made_it_of_finite_values():
    (loss, _), origins = _follow([1.0, 0.0, 3.0])
    assert np.isnan(loss)
    for origin in origins:
        first = origin.first()
        assert first.operation == "div"
        assert first.place.startswith("test_tracing.py:")
        assert first.place.endswith("(_normalised)")
        assert first.rows == (1,)
        assert (first.nan, first.infinite, first.shape) == (4, 0, (3, 4))


def test_what_is_given_is_named_as_such():
    first = _follow([1.0, np.nan, 3.0], value=1.0)[1][0].first()
    assert (first.operation, first.place) == ("given", "batch['s']")


def test_origin_within_a_scan_a_branch_and_a_compiled_function_is_found():
    def one(total, value):
        return total + jax.lax.cond(value > 0, jnp.log, jnp.sqrt, value), value

    def function(values):
        return jax.jit(lambda values: jax.lax.scan(one, 0.0, values)[0])(values)

    result, (origin,) = follow(function, {"values": np.array([1.0, -4.0, 2.0], np.float32)})
    assert np.isnan(result)
    assert origin.first().operation == "sqrt"


def test_way_back_is_told_from_the_way_there():
    # Finite, but its slope is not.
    slope, (origin,) = follow(jax.grad(lambda x: jnp.sqrt(x).sum()), {"x": np.zeros(3, np.float32)})
    assert np.isinf(slope).all()
    assert origin.first().infinite == 3
