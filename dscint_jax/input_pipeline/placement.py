"""Where a split's images stay: on the accelerators, in this machine's memory or on the disk.

In: what the config asks for, the size of the images, the room there is. Out: a decision and one
line that gives its reason. Processes that are told the same decide alike.
"""

import dataclasses

from jax.sharding import Mesh

from dscint_jax.config import AUTO, DEVICE, HOST, NONE
from dscint_jax.mesh import Device
from tfds_builder.commandline.errors import UserError

DEVICE_SHARE = 0.25
"""What 'auto' takes of the accelerators' free memory: steps need the rest."""


@dataclasses.dataclass(frozen=True)
class Accelerators:
    """The devices that images could stay on, spread evenly.

    Attributes:
      number: of all processes together.
      free: bytes that are free on the one that has least; None where that is not told, as on CPUs.
    """

    number: int
    free: int | None


@dataclasses.dataclass(frozen=True)
class Placement:
    """A decision.

    Attributes:
      place: 'device', 'host' or 'none'.
      reason: one line to print.
    """

    place: str
    reason: str


UNDECIDED = Placement(NONE, "")
"""Of images for which nobody decides: they are read from where they are."""


def accelerators_of(mesh: Mesh) -> Accelerators:
    """A mesh's devices, with the memory that is free on this process's own.

    Several processes have to agree on the least of their figures before they decide.
    """
    return Accelerators(mesh.size, _least_free(mesh.local_devices))


def place(
    cache: str,
    *,
    images: str,
    size: int,
    cache_gib: float,
    accelerators: Accelerators | None = None,
) -> Placement:
    """Decides where images stay.

    Args:
      cache: `config.data.cache`.
      images: what they are called, such as 'training images'.
      size: bytes that they take at most, wherever they stay.
      cache_gib: `config.data.cache_gib`, the most that they may take of this machine's memory.
      accelerators: where they could stay; None: they may not, and 'device' means 'auto'.

    Raises:
      UserError: there is no room where the config asks for it.
    """
    if accelerators is None:
        cache = AUTO if cache == DEVICE else cache
    elif cache == DEVICE:
        _check_room(images, size, accelerators)
    in_memory = size <= cache_gib * 2**30
    if cache == HOST and not in_memory:
        raise UserError(
            f"config.data.cache is 'host', but the {images} take up to {_gib(size)} GiB and "
            f"config.data.cache_gib is {cache_gib}; raise that, or set config.data.cache to 'auto'"
        )
    if accelerators and (cache == DEVICE or (cache == AUTO and _fits_well(size, accelerators))):
        return Placement(DEVICE, f"{images} stay on {_room(size, accelerators)}")
    if cache == HOST or (cache == AUTO and in_memory):
        room = f"{_gib(size)} GiB of {cache_gib}"
        return Placement(HOST, f"{images} stay in this machine's memory ({room})")
    why = (
        "config.data.cache is 'none'" if cache == NONE else f"config.data.cache_gib is {cache_gib}"
    )
    return Placement(NONE, f"{images} are read from the disk ({_gib(size)} GiB; {why})")


def _least_free(devices: list[Device]) -> int | None:
    free = []
    for device in devices:
        memory = device.memory_stats() or {}
        if "bytes_limit" not in memory:
            return None
        free.append(memory["bytes_limit"] - memory.get("bytes_in_use", 0))
    return min(free)


def _fits_well(size: int, accelerators: Accelerators) -> bool:
    if accelerators.free is None:
        return False
    return size <= accelerators.number * accelerators.free * DEVICE_SHARE


def _check_room(images: str, size: int, accelerators: Accelerators) -> None:
    if accelerators.free is not None and size > accelerators.number * accelerators.free:
        raise UserError(
            f"config.data.cache is 'device', but the {images} take up to {_gib(size)} GiB and "
            f"{_gib(accelerators.number * accelerators.free)} GiB are free on "
            f"{accelerators.number} accelerator(s); set config.data.cache to 'auto', or raise "
            f"config.data.pool"
        )


def _room(size: int, accelerators: Accelerators) -> str:
    number, free = accelerators.number, accelerators.free
    where = "the accelerator" if number == 1 else f"{number} accelerators"
    limit = "" if free is None else f" of {_gib(number * free)} free"
    return f"{where} ({_gib(size)} GiB{limit})"


def _gib(size: int) -> str:
    gib = size / 2**30
    return f"{gib:.1f}" if gib >= 0.1 else f"{gib:.2g}"
