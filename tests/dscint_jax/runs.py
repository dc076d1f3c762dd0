"""The command that trains the tiny network, started, interrupted and finished by tests."""

import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from dscint_jax.run.trackers.json_lines import read_metrics
from tests.dscint_jax.conftest import TESTS

STEPS = 60


def command(data_dir, workdir, *extra):
    return [
        *(sys.executable, "-m", "dscint_jax.main", "--config", str(TESTS / "tiny.py")),
        *("--workdir", str(workdir), f"--config.data.dir={data_dir}", f"--config.steps={STEPS}"),
        *("--config.evaluate_every=5", *extra),
    ]


def _as_by_default():
    # The tests themselves may run in the background of a script, where Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(words):
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_as_by_default,
    )


def finish(words, timeout=120):
    process = start(words)
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, output
    return output


def wait_for_step(process, workdir, step):
    """Returns once `step` is logged, or the process has ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        lines = read_metrics(workdir)
        if lines and lines[-1]["step"] >= step:
            break
        time.sleep(0.002)


def interrupt(words, workdir, step, number, delay=0.0):
    """Sends a signal once `step` is logged; the exit status and what was printed."""
    process = start(words)
    wait_for_step(process, workdir, step)
    time.sleep(delay)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def final_arrays(workdir, step=STEPS):
    """Parameters, statistics and the optimizer's state, whatever devices they were saved from."""
    folder = workdir.absolute() / "checkpoints" / str(step)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    items = []
    with ocp.StandardCheckpointer() as checkpointer:
        for item in ("model", "optimizer"):
            like = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
                checkpointer.metadata(folder / item).item_metadata.tree,
            )
            items.append(checkpointer.restore(folder / item, like))
    return jax.tree.leaves(items)


def assert_same_bits(first, second, step=STEPS):
    arrays = list(zip(final_arrays(first, step), final_arrays(second, step), strict=True))
    assert len(arrays) > 20
    for a, b in arrays:
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def largest_file_read(checkpoint):
    """The largest file of a saved network that Orbax reads: of some that it writes it reads none.

    It is found by flipping a bit in the middle, which is put back.
    """
    saved = _network_bytes(checkpoint)
    files = [path for path in (checkpoint / "model").rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: path.stat().st_size, reverse=True):
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        path.write_bytes(bytes(flipped))
        is_read = _network_bytes(checkpoint) != saved
        path.write_bytes(whole)
        if is_read:
            return path
    raise AssertionError(f"Orbax reads the middle of no file of {checkpoint}")


def _network_bytes(checkpoint):
    """The arrays of the network as Orbax alone reads them; None where it fails."""
    folder, here = checkpoint.absolute() / "model", jax.devices()[0]
    try:
        with ocp.StandardCheckpointer() as reader:
            like = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(
                    leaf.shape, leaf.dtype, sharding=jax.sharding.SingleDeviceSharding(here)
                ),
                reader.metadata(folder).item_metadata.tree,
            )
            restored = reader.restore(folder, like)
    # Damage makes it fail in any way.
    except Exception:
        return None
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(restored)]
