"""A SLURM of two nodes for the tests that submit jobs."""

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.slurm.cluster import down, missing, up


@pytest.fixture(scope="session")
def slurm():
    """A running SLURM; the tests that need it are skipped where none can be set up."""
    if reason := missing():
        pytest.skip(reason)
    # Not pytest's folder: its long name would not do for munge's socket.
    folder = Path(tempfile.mkdtemp(prefix="dscint-slurm-"))
    try:
        yield up(folder)
    finally:
        down(folder)
        shutil.rmtree(folder, ignore_errors=True)
