"""Damage to PNG, TIFF and JPEG whose checksums and structure still hold, so that it is believed.

In: a generator and the bytes of a sound picture. Out: other bytes.
"""

import struct
import zlib
from collections.abc import Callable
from random import Random

from tests.fuzz.damage_dicom import ABSURD, zeros_deflated
from tests.fuzz.seeds import CANARY, JPEG, PNG, TIFF

_WIDE = (0, 1, 15, 255, 4096, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
_PNG_START = 8
_LARGE = ((4096, 4096), (256, 65536), (1, 2**24), (2**31 - 1, 2**31 - 1), (128, 512))
_TIFF_TAGS = (256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 339)
_LONG = 4

Damage = Callable[[Random, bytes], bytes]
Chunk = tuple[bytes, bytes]


def png_header_lies(random: Random, content: bytes) -> bytes:
    """IHDR with absurd values and a right checksum."""
    chunks = _png_chunks(content)
    values = list(struct.unpack(">2I5B", chunks[0][1]))
    for place in random.sample(range(7), random.choice((1, 1, 2))):
        small = (0, 1, 2, 3, 4, 6, 8, 16, 32, 255)
        values[place] = random.choice(_WIDE if place < 2 else small)
    return _png([(b"IHDR", struct.pack(">2I5B", *values)), *chunks[1:]])


def png_bomb(random: Random, content: bytes) -> bytes:
    """Text, a profile or pixels that inflate to gigabytes; the pixels with a header to match."""
    chunks = _png_chunks(content)
    bomb = b"\x78\x01" + zeros_deflated(random.choice((16, 32, 1024, 4096))) + bytes(4)
    name = CANARY.encode() + b"\0"
    texts = (b"zTXt", name + b"\0" + bomb), (b"iTXt", name + b"\1\0\0\0" + bomb)
    match random.randrange(3):
        case 0:
            chunks[1:1] = [random.choice((*texts, (b"iCCP", name + b"\0" + bomb)))]
        case 1:
            chunks[-1:-1] = [random.choice(texts)] * random.choice((1, 3))
        case 2:
            size = random.choice(_LARGE)
            header = struct.pack(">2I5B", *size, random.choice((8, 16)), 0, 0, 0, 0)
            pixels = [bomb[at : at + 2**16] for at in range(0, len(bomb), 2**16)]
            return _png([(b"IHDR", header), *((b"IDAT", one) for one in pixels), (b"IEND", b"")])
    return _png(chunks)


def png_chunks_amiss(random: Random, content: bytes) -> bytes:
    """Chunks that are missing, twice there, out of order, cut short, unknown or very many."""
    chunks = _png_chunks(content)
    place = random.randrange(len(chunks))
    match random.randrange(6):
        case 0:
            del chunks[place]
        case 1:
            chunks.insert(place, random.choice(chunks))
        case 2:
            random.shuffle(chunks)
        case 3:
            name, data = chunks[place]
            chunks[place] = name, data[: random.randrange(len(data) + 1)]
        case 4:
            names = (
                b"tRNS",
                b"PLTE",
                b"acTL",
                b"eXIf",
                b"gAMA",
                b"sBIT",
                b"ABCD",
                b"fdAT",
                b"cICP",
            )
            chunks.insert(place, (random.choice(names), random.randbytes(random.randrange(100))))
        case 5:
            chunks[1:1] = [(b"IDAT", b""), (b"tEXt", b"a\0b")] * random.choice((100, 50_000))
    return _png(chunks)


def png_pixels_amiss(random: Random, content: bytes) -> bytes:
    """Pixels that are damaged, or filtered in ways that do not exist, under right checksums."""
    chunks = _png_chunks(content)
    data = b"".join(data for name, data in chunks if name == b"IDAT")
    if random.random() < 0.5:
        changed = bytearray(data)
        for _ in range(random.choice((1, 5, 100))):
            changed[random.randrange(len(changed))] = random.randrange(256)
        data = bytes(changed)
    else:
        lines = bytearray(zlib.decompress(data))
        for _ in range(random.choice((1, 5, 100))):
            lines[random.randrange(len(lines))] = random.randrange(256)
        data = zlib.compress(bytes(lines[: random.choice((len(lines), len(lines) // 2))]))
    return _png([chunks[0], (b"IDAT", data), (b"IEND", b"")])


def tiff_values_lie(random: Random, content: bytes) -> bytes:
    """Tags with absurd types, counts or values."""
    changed = bytearray(content)
    entries = _tiff_entries(content)
    for at in random.sample(entries, random.choice((1, 1, 2, 4))):
        match random.randrange(4):
            case 0:
                struct.pack_into("<H", changed, at, random.choice(_TIFF_TAGS))
            case 1:
                struct.pack_into(
                    "<H", changed, at + 2, random.choice((0, 1, 2, 3, 4, 5, 12, 16, 99))
                )
            case 2:
                struct.pack_into("<I", changed, at + 4, random.choice(_WIDE))
            case 3:
                struct.pack_into("<I", changed, at + 8, random.choice((*_WIDE, *ABSURD)))
    return bytes(changed)


def tiff_known_tag_lies(random: Random, content: bytes) -> bytes:
    """One of the tags that describe the pixels, with a number that is valid for another picture."""
    changed = bytearray(content)
    entries = _tiff_entries(content)
    for at in entries:
        (tag,) = struct.unpack_from("<H", content, at)
        if tag in _TIFF_TAGS and random.random() < 0.2:
            number = random.choice((0, 1, 2, 3, 5, 6, 7, 8, 16, 32, 64, 1024, 32773, 34712, 50000))
            struct.pack_into("<HHII", changed, at, tag, _LONG, 1, number)
    return bytes(changed)


def tiff_pages_loop(random: Random, content: bytes) -> bytes:
    """Pages that follow each other in a circle, lead out of the file, or are very many."""
    changed = bytearray(content)
    first, count = _tiff_directory(content)
    behind = first + 2 + 12 * count
    match random.randrange(3):
        case 0:
            struct.pack_into("<I", changed, behind, first)
        case 1:
            places = (1, len(content) - 1, len(content) + 100, 2**32 - 1)
            struct.pack_into("<I", changed, random.choice((4, behind)), random.choice(places))
        case 2:
            # Directories of one entry, each pointing to the next.
            at = len(changed)
            struct.pack_into("<I", changed, behind, at)
            for n in range(random.choice((10, 1000, 20_000))):
                entry = struct.pack("<HHII", 256, _LONG, 1, 16)
                changed += struct.pack("<H", 1) + entry + struct.pack("<I", at + 18 * (n + 1))
    return bytes(changed)


def tiff_bomb(random: Random, content: bytes) -> bytes:
    """A strip that inflates to gigabytes, under a directory that claims much or little."""
    strip = b"\x78\x01" + zeros_deflated(random.choice((32, 1024, 4096))) + bytes(4)
    columns, rows = random.choice(_LARGE)
    per_strip = random.choice((rows, 1, 2**32 - 1))
    numbers = {256: columns, 257: rows, 258: 16, 259: 8, 262: 1, 273: 8, 277: 1, 278: per_strip}
    numbers[279] = len(strip)
    entries = (struct.pack("<HHII", tag, _LONG, 1, value) for tag, value in numbers.items())
    directory = struct.pack("<H", len(numbers)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + directory


def jpeg_header_lies(random: Random, content: bytes) -> bytes:
    """A frame header with another size, precision or number of components."""
    changed = bytearray(content)
    at = min(place for place in map(content.find, (b"\xff\xc0", b"\xff\xc2")) if place >= 0)
    match random.randrange(4):
        case 0 | 1:
            for place in random.choice(((5,), (7,), (5, 7))):
                struct.pack_into(">H", changed, at + place, random.choice(ABSURD))
        case 2:
            changed[at + 9] = random.choice((0, 2, 4, 255))
        case 3:
            changed[at + random.choice((1, 4, 10, 11, 12, 13))] = random.randrange(256)
    return bytes(changed)


def jpeg_segments_amiss(random: Random, content: bytes) -> bytes:
    """Scans by the thousand, restart intervals, tables that lie, a second picture, another end."""
    start = content.index(b"\xff\xda")
    header, scan = content[:start], content[start:-2]
    match random.randrange(5):
        case 0:
            return header + scan * random.choice((2, 30, 1000)) + b"\xff\xd9"
        case 1:
            interval = b"\xff\xdd\0\4" + struct.pack(">H", random.choice(ABSURD))
            return header + interval + scan + b"\xff\xd9"
        case 2:
            marker = random.choice((0xC4, 0xDB, 0xC0, 0xE0, 0xE1, 0xE2, 0xEE, 0xFE, 0xC9, 0xD8))
            junk = random.randbytes(random.choice((0, 20, 200)))
            return header + b"\xff%c" % marker + struct.pack(">H", len(junk) + 2) + junk + scan
        case 3:
            return content + content
        case _:
            return header + scan[: random.randrange(14, len(scan))] + b"\xff\xd9"


def jpeg_bomb(random: Random, content: bytes) -> bytes:
    """A header that claims the largest picture, and a scan that ends at once, many times over."""
    changed = bytearray(content[:-2])
    at = min(place for place in map(content.find, (b"\xff\xc0", b"\xff\xc2")) if place >= 0)
    rows, columns = random.choice(((4096, 4096), (65500, 256), (16384, 1024), (65535, 65535)))
    struct.pack_into(">2H", changed, at + 5, rows, columns)
    start = content.index(b"\xff\xda")
    scans = content[start : start + random.choice((16, 500))] * random.choice((1, 20, 500))
    return bytes(changed[:start]) + scans + random.choice((b"", b"\xff\xd9"))


def _png_chunks(content: bytes) -> list[Chunk]:
    found, at = [], _PNG_START
    while at + 12 <= len(content):
        length, name = struct.unpack_from(">I4s", content, at)
        found.append((name, content[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def _png(chunks: list[Chunk]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, data in chunks:
        checksum = struct.pack(">I", zlib.crc32(name + data))
        parts += [struct.pack(">I", len(data)), name, data, checksum]
    return b"".join(parts)


def _tiff_directory(content: bytes) -> tuple[int, int]:
    """Where the first directory lies and how many entries it has; the seeds are little endian."""
    (first,) = struct.unpack_from("<I", content, 4)
    return first, struct.unpack_from("<H", content, first)[0]


def _tiff_entries(content: bytes) -> list[int]:
    first, count = _tiff_directory(content)
    return [first + 2 + 12 * n for n in range(count)]


PICTURE_DAMAGE: dict[str, dict[str, Damage]] = {
    kind: {function.__name__.replace("_", " "): function for function in functions}
    for kind, functions in {
        PNG: (png_header_lies, png_bomb, png_chunks_amiss, png_pixels_amiss),
        TIFF: (tiff_values_lie, tiff_known_tag_lies, tiff_pages_loop, tiff_bomb),
        JPEG: (jpeg_header_lies, jpeg_segments_amiss, jpeg_bomb),
    }.items()
}
