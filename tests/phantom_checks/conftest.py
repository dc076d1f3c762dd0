"""Fixtures of the builder's tests."""

from tests.tfds_builder.conftest import nema_nm1, rng  # noqa: F401
