import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dscint_jax.conftest import cohort, data_dir  # noqa: F401 - fixtures

PROJECT = Path(__file__).parent.parent


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_three_of_the_kills_end_in_the_same_bits(data_dir, tmp_path):  # noqa: F811 - the fixture
    seed = random.SystemRandom().randrange(2**16)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.kill_matrix", "--kills", "3", "--seed", str(seed)),
            *("--out", str(tmp_path), "--data_dir", str(data_dir), "--steps", "60"),
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, (seed, done.stdout, done.stderr)
    assert "3 kills, all ended in the same bits" in done.stdout
