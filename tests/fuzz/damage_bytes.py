"""Damage that any file can suffer, whatever it holds.

In: a generator, the bytes of a file, and the sound files. Out: other bytes.
"""

from collections.abc import Callable
from random import Random

from tests.fuzz.seeds import Seed

_HEADER_BYTES = 1024
# What stands at the beginning of a codestream: JPEG 2000, JPEG, deflated data of a PNG.
_CODESTREAMS = (b"\xff\x4f\xff\x51", b"\xff\xd8\xff", b"IDAT", b"\xfe\xff\x00\xe0")
_CODESTREAM_BYTES = 256
_TELLING = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF)
_MAGIC = (
    bytes(128) + b"DICM",
    bytes(128) + b"DICM\x02\0\0\0UL\x04\0\xff\xff\xff\x7f",
    b"\x08\0\x05\0",
    b"\x89PNG\r\n\x1a\n",
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    b"II*\0\x08\0\0\0",
    b"MM\0*\0\0\0\x08",
    b"II+\0\x08\0\0\0",
    b"\xff\xd8\xff\xe0",
    b"",
)

Damage = Callable[[Random, bytes, tuple[Seed, ...]], bytes]


def truncated(random: Random, content: bytes, seeds: tuple[Seed, ...]) -> bytes:
    """Cut off somewhere: in the header, anywhere, or just before the end."""
    size = len(content)
    most = random.choice((min(200, size), min(_HEADER_BYTES, size), size, size))
    return content[: random.choice((random.randrange(most + 1), size - random.randrange(1, 20)))]


def few_bits(random: Random, content: bytes, seeds: tuple[Seed, ...]) -> bytes:
    """One to eight bits flipped."""
    return _flipped(random, content, random.randint(1, 8), 0, len(content))


def many_bits(random: Random, content: bytes, seeds: tuple[Seed, ...]) -> bytes:
    """Hundreds of bits flipped."""
    return _flipped(random, content, random.randint(50, 2000), 0, len(content))


def header_bits(random: Random, content: bytes, seeds: tuple[Seed, ...]) -> bytes:
    """Bits flipped in the header."""
    return _flipped(random, content, random.randint(1, 30), 0, _HEADER_BYTES)


def codestream_bits(random: Random, content: bytes, seeds: tuple[Seed, ...]) -> bytes:
    """Bits flipped where a codestream begins."""
    start = _codestream(random, content)
    return _flipped(random, content, random.randint(1, 10), start, start + _CODESTREAM_BYTES)


def header_bytes(random: Random, content: bytes, seeds: tuple[Seed, ...]) -> bytes:
    """Bytes of the header set to telling values."""
    return _set(random, content, 0, _HEADER_BYTES)


def codestream_bytes(random: Random, content: bytes, seeds: tuple[Seed, ...]) -> bytes:
    """Bytes set to telling values where a codestream begins."""
    start = _codestream(random, content)
    return _set(random, content, start, start + _CODESTREAM_BYTES)


def inserted_run(random: Random, content: bytes, seeds: tuple[Seed, ...]) -> bytes:
    """Bytes that were not there."""
    at = random.randrange(random.choice((_HEADER_BYTES, len(content) + 1)))
    size = random.choice((1, 2, 7, 64, 4096))
    return content[:at] + random.choice((bytes(size), random.randbytes(size))) + content[at:]


def deleted_run(random: Random, content: bytes, seeds: tuple[Seed, ...]) -> bytes:
    """Bytes that are there no more."""
    at = random.randrange(random.choice((min(_HEADER_BYTES, len(content)), len(content))) or 1)
    return content[:at] + content[at + random.choice((1, 2, 7, 64, 4096)) :]


def repeated_run(random: Random, content: bytes, seeds: tuple[Seed, ...]) -> bytes:
    """A piece that comes again and again."""
    at, size = random.randrange(len(content) or 1), random.choice((8, 64, 1000))
    times = random.choice((1, 3, 100))
    return content[:at] + content[at : at + size] * times + content[at:]


def spliced(random: Random, content: bytes, seeds: tuple[Seed, ...]) -> bytes:
    """The beginning of one file and the end of another."""
    other = random.choice(seeds).content
    here, there = random.random(), random.random()
    return content[: int(here * len(content))] + other[int(there * len(other)) :]


def noise(random: Random, content: bytes, seeds: tuple[Seed, ...]) -> bytes:
    """Nothing but noise, behind the first bytes of a format, or not even that."""
    return random.choice(_MAGIC) + random.randbytes(random.choice((1, 50, 1000, 100_000)))


def emptied(random: Random, content: bytes, seeds: tuple[Seed, ...]) -> bytes:
    """Nothing at all, zeros, or one byte."""
    return random.choice((b"", b"\0", bytes(10_000), b"\xff" * 1000, content[:1]))


def _flipped(random: Random, content: bytes, times: int, start: int, end: int) -> bytes:
    end = min(end, len(content))
    if start >= end:
        return content
    changed = bytearray(content)
    for _ in range(times):
        changed[random.randrange(start, end)] ^= 1 << random.randrange(8)
    return bytes(changed)


def _set(random: Random, content: bytes, start: int, end: int) -> bytes:
    end = min(end, len(content))
    if start >= end:
        return content
    changed = bytearray(content)
    for _ in range(random.choice((1, 2, 8))):
        at, size = random.randrange(start, end), random.choice((1, 2, 4))
        changed[at : at + size] = bytes([random.choice(_TELLING)]) * size
    return bytes(changed)


def _codestream(random: Random, content: bytes) -> int:
    """Where one begins; the header's end where there is none."""
    places = [content.find(start) for start in _CODESTREAMS]
    found = [place for place in places if place >= 0]
    return random.choice(found) if found else min(_HEADER_BYTES, len(content))


BYTE_DAMAGE: dict[str, Damage] = {
    function.__name__.replace("_", " "): function
    for function in (
        truncated,
        few_bits,
        many_bits,
        header_bits,
        codestream_bits,
        header_bytes,
        codestream_bytes,
        inserted_run,
        deleted_run,
        repeated_run,
        spliced,
        noise,
        emptied,
    )
}
