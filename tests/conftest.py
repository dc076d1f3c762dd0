"""What every test shares: eight fake devices, strict JAX, and the slow marker."""

import os

# Before JAX is imported: devices are counted once.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# Eight devices on few cores: with steps queued up, their collectives can wait for each other
# forever.
jax.config.update("jax_cpu_enable_async_dispatch", False)


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="also run tests marked slow")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--run-slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skipif(True, reason="slow: needs --run-slow"))
