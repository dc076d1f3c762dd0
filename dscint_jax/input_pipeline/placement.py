"""Where a split's images stay: on the accelerators, in this machine's memory or on the disk.

In: what the config asks for, the size of the images, the room there is. Out: a decision and one
line that gives its reason. Processes that are told the same decide alike.
"""

import dataclasses

from jax.sharding import Mesh

from dscint_jax.config import AUTO, DEVICE, HOST, NONE
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

    @property
    def room(self) -> int | None:
        """Bytes that are free on all of them."""
        return None if self.free is None else self.number * self.free


@dataclasses.dataclass(frozen=True)
class Placement:
    """A decision: 'device', 'host' or 'none', and its reason, one line to print."""

    place: str
    reason: str


UNDECIDED = Placement(NONE, "")
"""Of images for which nobody decides: they are read from where they are."""


def accelerators_of(mesh: Mesh) -> Accelerators:
    """A mesh's devices, with the memory that is free on this process's own.

    Several processes have to agree on the least of their figures before they decide.
    """
    memories = [device.memory_stats() or {} for device in mesh.local_devices]
    if not all("bytes_limit" in memory for memory in memories):
        return Accelerators(mesh.size, None)
    free = min(memory["bytes_limit"] - memory.get("bytes_in_use", 0) for memory in memories)
    return Accelerators(mesh.size, free)


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
    if accelerators is None and cache == DEVICE:
        cache = AUTO
    room = accelerators.room if accelerators else None
    in_memory = size <= cache_gib * 2**30
    if accelerators and cache == DEVICE and room is not None and size > room:
        raise UserError(
            f"config.data.cache is 'device', but the {images} take up to {_gib(size)} GiB and "
            f"{_gib(room)} GiB are free on {accelerators.number} accelerator(s); set "
            f"config.data.cache to 'auto', or raise config.data.pool"
        )
    if cache == HOST and not in_memory:
        raise UserError(
            f"config.data.cache is 'host', but the {images} take up to {_gib(size)} GiB and "
            f"config.data.cache_gib is {cache_gib}; raise that, or set config.data.cache to 'auto'"
        )
    fits_well = room is not None and size <= room * DEVICE_SHARE
    if accelerators and (cache == DEVICE or (cache == AUTO and fits_well)):
        number = accelerators.number
        where = "the accelerator" if number == 1 else f"{number} accelerators"
        limit = "" if room is None else f" of {_gib(room)} free"
        return Placement(DEVICE, f"{images} stay on {where} ({_gib(size)} GiB{limit})")
    if cache == HOST or (cache == AUTO and in_memory):
        share = f"{_gib(size)} GiB of {cache_gib}"
        return Placement(HOST, f"{images} stay in this machine's memory ({share})")
    why = (
        "config.data.cache is 'none'" if cache == NONE else f"config.data.cache_gib is {cache_gib}"
    )
    return Placement(NONE, f"{images} are read from the disk ({_gib(size)} GiB; {why})")


def _gib(size: int) -> str:
    gib = size / 2**30
    return f"{gib:.1f}" if gib >= 0.1 else f"{gib:.2g}"
