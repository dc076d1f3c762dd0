import jax
import pytest

from dscint_jax.input_pipeline import Accelerators, accelerators_of, place
from dscint_jax.mesh import data_mesh
from tfds_builder.commandline.errors import UserError

GIB = 2**30


def _place(cache, size_gib, cache_gib=4.0, accelerators=None):
    return place(
        cache,
        images="training images",
        size=int(size_gib * GIB),
        cache_gib=cache_gib,
        accelerators=accelerators,
    )


@pytest.mark.parametrize(
    "size, accelerators, expected",
    [
        (4.9, Accelerators(1, 20 * GIB), "device"),
        (5.1, Accelerators(1, 20 * GIB), "none"),
        (3.9, Accelerators(1, 8 * GIB), "host"),
        (4.9, Accelerators(8, 20 * GIB // 8), "device"),
        (0.1, Accelerators(8, None), "host"),
        (4.1, Accelerators(8, None), "none"),
        (0.1, None, "host"),
        (4.1, None, "none"),
    ],
)
def test_auto_takes_the_first_place_with_room(size, accelerators, expected):
    assert _place("auto", size, accelerators=accelerators).place == expected


@pytest.mark.parametrize("cache", ["device", "host", "none"])
def test_what_is_asked_for_is_done_where_there_is_room(cache):
    assert _place(cache, 1, accelerators=Accelerators(2, GIB)).place == cache


def test_device_is_taken_where_its_memory_is_not_told_and_is_auto_where_there_is_none():
    assert _place("device", 100, accelerators=Accelerators(2, None)).place == "device"
    assert _place("device", 1).place == "host"
    assert _place("device", 100).place == "none"


def test_what_does_not_fit_is_refused_with_field_size_and_limit():
    with pytest.raises(UserError, match=r"config\.data\.cache is 'device'.*9\.0 GiB.*8\.0 GiB"):
        _place("device", 9, accelerators=Accelerators(2, 4 * GIB))
    with pytest.raises(UserError, match=r"is 'host'.*9\.0 GiB.*cache_gib is 4\.0"):
        _place("host", 9)


def test_decision_is_told_in_one_line_with_its_reason():
    assert _place("auto", 0.4).reason == (
        "training images stay in this machine's memory (0.4 GiB of 4.0)"
    )
    assert _place("auto", 2, accelerators=Accelerators(4, 10 * GIB)).reason == (
        "training images stay on 4 accelerators (2.0 GiB of 40.0 free)"
    )
    assert _place("auto", 9).reason == (
        "training images are read from the disk (9.0 GiB; config.data.cache_gib is 4.0)"
    )
    assert "config.data.cache is 'none'" in _place("none", 1).reason


def test_memory_of_cpus_is_not_told():
    assert accelerators_of(data_mesh()) == Accelerators(jax.device_count(), None)
