import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dscint_jax.training.losses import make_loss, mix_pairs, partners

LOGITS = jnp.array([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5], [-3.0, 9.0, 1.0]])
LABELS = jnp.array([0, 2, 1])
ONES = (1.0, 1.0, 1.0)


def test_loss_is_weighted_cross_entropy():
    loss = make_loss(class_weights=(1.0, 1.0, 3.0))(LOGITS, LABELS)
    log_p = jax.nn.log_softmax(LOGITS)
    np.testing.assert_allclose(loss, [-log_p[0, 0], 3 * np.log(3), -log_p[2, 1]], rtol=1e-6)


def test_smoothing_spreads_a_share_of_the_target_over_all_classes():
    loss = make_loss(class_weights=ONES, label_smoothing=0.3)(LOGITS, LABELS)
    log_p = jax.nn.log_softmax(LOGITS)
    expected = -(0.8 * log_p[0, 0] + 0.1 * log_p[0, 1] + 0.1 * log_p[0, 2])
    np.testing.assert_allclose(loss[0], expected, rtol=1e-6)


def test_focal_loss_is_cross_entropy_times_a_power_of_what_is_missing():
    loss = make_loss(class_weights=(1.0, 1.0, 3.0), focal_gamma=2.0)(LOGITS, LABELS)
    p = np.take_along_axis(np.asarray(jax.nn.softmax(LOGITS)), np.asarray(LABELS)[:, None], 1)[:, 0]
    np.testing.assert_allclose(loss, (1 - p) ** 2 * -np.log(p) * [1, 3, 1], rtol=1e-4)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_loss_has_finite_gradients_where_the_class_is_certain(gamma):
    logits = jnp.array([[200.0, 0.0, 0.0], [0.0, 200.0, 0.0]])
    loss = make_loss(class_weights=ONES, focal_gamma=gamma)
    gradient = jax.grad(lambda x: loss(x, jnp.array([0, 0])).sum())(logits)
    assert np.isfinite(gradient).all()
    assert gradient[1, 0] < -0.5


def test_mixture_keeps_the_share_of_each_and_takes_the_rest_of_its_neighbour():
    values = jnp.arange(8.0).reshape(4, 2)
    mixed = mix_pairs(values, jnp.array([0.75, 0.75, 1.0, 1.0]))
    np.testing.assert_allclose(mixed, [[0.5, 1.5], [1.5, 2.5], [4, 5], [6, 7]])
    np.testing.assert_array_equal(partners(jnp.array([3, 1, 4, 5])), [1, 3, 5, 4])
