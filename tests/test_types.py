"""Hints are held where a test calls: a wrong type, shape or promotion fails there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from dscint_jax.input_pipeline.normalise import normalise
from dscint_jax.metrics.passes import Evaluation, confusion_matrix
from dscint_jax.metrics.scores import five_metrics
from dscint_jax.models import AttentionMaps
from dscint_jax.report.tables import plain
from tfds_builder.studies.matrix import fit_of


def _images(*shape):
    return jnp.ones(shape, jnp.int32)


def test_an_array_of_too_few_axes_is_refused():
    assert five_metrics(np.eye(3, dtype=int))["accuracy"] == 1
    with pytest.raises(TypeCheckError):
        five_metrics(np.ones(3, int))


def test_axes_of_one_name_must_have_one_size():
    assert normalise(_images(2, 8, 4, 1), jnp.ones(2), clip=4.0).shape == (2, 8, 4, 1)
    with pytest.raises(TypeCheckError):
        normalise(_images(2, 8, 4, 1), jnp.ones(3), clip=4.0)


def test_shapes_are_held_in_what_is_compiled():
    compiled = jax.jit(lambda counts, scale: normalise(counts, scale, clip=4.0))
    with pytest.raises(TypeCheckError):
        compiled(_images(2, 8, 4, 1), jnp.ones(3))


def test_an_array_of_another_kind_is_refused():
    with pytest.raises(TypeCheckError):
        confusion_matrix(jnp.ones((2, 4)), jnp.ones(2), jnp.ones(2, bool))


def test_types_are_held_in_both_packages():
    assert fit_of(1024, 256).pool == 1
    with pytest.raises(BeartypeCallHintViolation):
        fit_of("1024", 256)
    with pytest.raises(TypeCheckError):
        plain(3)


def test_a_tree_is_checked_where_it_is_made_and_not_where_jax_puts_it_together():
    with pytest.raises(TypeCheckError):
        AttentionMaps(channel=jnp.ones(3))
    counts, predicted = jnp.zeros((4, 4), int), jnp.zeros(2, int)
    evaluation = Evaluation(counts, jnp.zeros(()), predicted, jnp.ones((2, 4)))
    assert jax.tree.map(jnp.shape, evaluation).confusion == (4, 4)


def test_types_are_never_promoted_unasked():
    with pytest.raises(ValueError, match="promotion"):
        jnp.arange(2) * jnp.ones(2)
