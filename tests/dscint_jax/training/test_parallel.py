from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dscint_jax.mesh import check_batch_size, data_mesh, fitting_batch_size, local_rows
from tfds_builder.commandline.errors import UserError


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
@pytest.mark.usefixtures("unchecked")
def test_processes_have_the_rows_of_their_devices(process, rows, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: process)
    assert local_rows(24, _mesh(0, 1, 1, 2)) == rows


@pytest.mark.usefixtures("unchecked")
def test_devices_apart_none_at_all_and_a_batch_not_even_are_refused():
    with pytest.raises(UserError, match=r"process 0 has devices \[0, 2\] of 4"):
        local_rows(8, _mesh(0, 1, 0, 1))
    with pytest.raises(UserError, match=r"process 0 has devices \[\] of 2"):
        local_rows(8, _mesh(1, 1))
    with pytest.raises(UserError, match=r"config\.batch_size 9"):
        local_rows(9, _mesh(0, 0))


def test_batch_is_as_asked_for_where_there_are_as_many_examples():
    assert fitting_batch_size(48, 48, 1) == 48
    # Whether devices can share it, `check_batch_size` says.
    assert fitting_batch_size(9, 10, 8) == 9


@pytest.mark.parametrize(
    ("examples", "options", "size"),
    [
        (42, {}, 40),
        (8, {}, 8),
        (42, {"accumulation": 2}, 32),
        (42, {"pairs": True}, 32),
        (47, {"accumulation": 3, "pairs": True}, 0),
        (48, {"accumulation": 3, "pairs": True}, 48),
    ],
)
def test_larger_batch_is_cut_to_the_most_examples_that_all_devices_share(examples, options, size):
    if not size:
        with pytest.raises(UserError, match=f"has {examples}, and a batch needs 48 at least"):
            fitting_batch_size(800, examples, 8, **options)
        return
    assert fitting_batch_size(800, examples, 8, **options) == size
    check_batch_size(size, data_mesh(), **options)
