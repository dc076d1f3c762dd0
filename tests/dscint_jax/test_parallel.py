from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dscint_jax.errors import DscintError
from dscint_jax.parallel import data_mesh, local_rows


def _mesh(*processes):
    """Stands in for a mesh whose devices belong to these processes."""
    devices = np.array([SimpleNamespace(process_index=process) for process in processes])
    return SimpleNamespace(devices=devices, size=len(devices))


def test_rows_of_a_process_are_those_that_the_sharding_gives_its_devices():
    mesh = data_mesh()
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    rows = [rows for (rows,) in sharding.addressable_devices_indices_map((24,)).values()]
    assert local_rows(24, mesh) == slice(min(r.start for r in rows), max(r.stop for r in rows))


@pytest.mark.parametrize("process, rows", [(0, slice(0, 6)), (1, slice(6, 18)), (2, slice(18, 24))])
def test_processes_have_the_rows_of_their_devices(process, rows, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: process)
    assert local_rows(24, _mesh(0, 1, 1, 2)) == rows


def test_devices_apart_none_at_all_and_a_batch_not_even_are_refused():
    with pytest.raises(DscintError, match=r"process 0 has devices \[0, 2\] of 4"):
        local_rows(8, _mesh(0, 1, 0, 1))
    with pytest.raises(DscintError, match=r"process 0 has devices \[\] of 2"):
        local_rows(8, _mesh(1, 1))
    with pytest.raises(DscintError, match=r"config\.batch_size 9"):
        local_rows(9, _mesh(0, 0))
