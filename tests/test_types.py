"""Hints are held where a test calls: a wrong type or promotion fails there."""

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from tfds_builder.matrix import fit_of


def test_types_are_held():
    assert fit_of(1024, 256).pool == 1
    with pytest.raises(TypeCheckError):
        fit_of("1024", 256)


def test_types_are_never_promoted_unasked():
    with pytest.raises(ValueError, match="promotion"):
        jnp.arange(2) * jnp.ones(2)
