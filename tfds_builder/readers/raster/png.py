"""Cuts a PNG down to the chunks that its pixels need, and checks what it claims.

In: the content of a file. Out: the same picture without texts, dates and profiles.
"""

import struct
import zlib
from collections.abc import Iterable

from tfds_builder.commandline.errors import UserError
from tfds_builder.readers.raster.container import (
    DEEP_COLOUR,
    MOST_PARTS,
    Container,
    bits_refused,
    check_orientation,
    check_size,
    damaged,
)
from tfds_builder.readers.raster.directory import ORIENTATION, exif_value

PNG_START = b"\x89PNG\r\n\x1a\n"
_KEPT = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# First row, first column, row step, column step of each Adam7 pass (PNG specification, 8.2).
_ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)
_INFLATE_BYTES = 2**16


def cut_png(content: bytes) -> Container:
    """Keeps header, palette and pixels, whose checksums and number are right."""
    whole = memoryview(content)
    header, kept, pixels = None, [whole[:8]], []
    for name, chunk in _chunks(whole):
        data = chunk[8:-4]
        if name in _KEPT:
            if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
                raise damaged("PNG", "checksum")
            kept.append(chunk)
        if name == b"tRNS":
            raise UserError("declares transparent pixels; export it without transparency")
        if name == b"IHDR":
            if header:
                raise damaged("PNG", "two headers")
            header = _header(data)
        elif name == b"IDAT":
            pixels.append(data)
        elif name == b"acTL":
            frames = int.from_bytes(data[:4], "big")
            if frames > 1:
                raise UserError(
                    f"is an animation of {frames} frames; save each view as a file of its own"
                )
        elif name == b"eXIf":
            check_orientation(exif_value(bytes(data), ORIENTATION))
        elif name not in _KEPT and name[:1].isupper():
            raise damaged("PNG", "unknown critical chunk")
    if header is None:
        raise damaged("PNG", "no header")
    rows, columns, size = header
    if not _inflates_to(size, pixels):
        raise damaged("PNG", "truncated")
    return Container(b"".join(kept), rows, columns)


def _chunks(whole: memoryview) -> Iterable[tuple[bytes, memoryview]]:
    at = len(PNG_START)
    for number in range(MOST_PARTS):
        if len(whole) < at + 12:
            raise damaged("PNG", "truncated")
        length, name = struct.unpack_from(">I4s", whole, at)
        end = at + length + 12
        if end > len(whole):
            raise damaged("PNG", "truncated")
        if (number == 0) != (name == b"IHDR"):
            raise damaged("PNG", "header not first")
        yield name, whole[at:end]
        if name == b"IEND":
            return
        at = end
    raise damaged("PNG", f"more than {MOST_PARTS} chunks")


def _header(data: memoryview) -> tuple[int, int, int]:
    """Rows, columns, and bytes of the filtered rows."""
    columns, rows, bits, colour, compression, filtering, interlace = struct.unpack(">2I5B", data)
    if colour not in _SAMPLES or compression or filtering or interlace > 1:
        raise damaged("PNG", "header")
    if bits == 16 and colour:
        raise UserError(DEEP_COLOUR)
    if bits not in ((2, 4, 8) if colour == 3 else (8, 16)):
        raise bits_refused(bits)
    check_size(rows, columns)
    return rows, columns, _size(rows, columns, bits * _SAMPLES[colour], bool(interlace))


def _size(rows: int, columns: int, bits: int, interlaced: bool) -> int:
    """Bytes of the filtered rows, each behind a filter byte."""
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    size = 0
    for row, column, down, across in passes:
        height, width = -(-(rows - row) // down), -(-(columns - column) // across)
        size += height * (1 + -(-width * bits // 8)) if width > 0 < height else 0
    return size


def _inflates_to(size: int, pieces: list[memoryview]) -> bool:
    """Whether deflated data holds so many bytes; decoders fill up with zeros unsaid."""
    inflater, missing = zlib.decompressobj(), size
    for piece in pieces:
        for start in range(0, len(piece), _INFLATE_BYTES):
            if missing <= 0 or inflater.eof:
                break
            missing -= len(inflater.decompress(piece[start : start + _INFLATE_BYTES], missing))
    return missing <= 0
