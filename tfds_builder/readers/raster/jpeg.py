"""Cuts a JPEG down to the segments that its pixels need, and checks what it claims.

In: the content of a file. Out: the same picture without comments, dates, profiles, thumbnails and
further pictures, and a twin that tells whether it stops short.
"""

import re
import struct
from collections.abc import Iterable

from tfds_builder.commandline.errors import UserError
from tfds_builder.readers.raster.container import (
    COLOUR,
    MOST_PARTS,
    Container,
    check_orientation,
    check_size,
    damaged,
)
from tfds_builder.readers.raster.directory import MP_IMAGES, ORIENTATION, exif_value

JPEG_START = b"\xff\xd8\xff"
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
_SOF, _DHT, _SOI, _EOI, _SOS = (0xC0, 0xC1, 0xC2), 0xC4, 0xD8, 0xD9, 0xDA
_DQT, _DRI, _APP0, _APP1, _APP2, _APP14, _APP15, _COM = 219, 221, 224, 225, 226, 238, 239, 254
_MOST_SCANS = 32
# Entropy-coded data that no picture has there: no byte of it is 255, nor is it regular.
_FILLER = bytes(n * n * 31 % 251 for n in range(2048))


def cut_jpeg(content: bytes) -> Container:
    """Keeps frame, tables and scans. The twin has filler behind each scan.

    Where a scan stops short, libjpeg makes up the rest and says nothing; it then also takes the
    filler for pixels.
    """
    kept, filled, size, scans = [b"\xff\xd8"], [b"\xff\xd8"], None, 0
    for marker, segment, scan in _segments(content):
        if marker in _SOF:
            if size:
                raise damaged("JPEG", "two headers")
            size = _header(segment)
        elif marker == _SOS:
            scans += 1
            if size is None or scans > _MOST_SCANS:
                raise damaged("JPEG", "no header" if size is None else "too many scans")
        elif marker == _APP1 and segment.startswith(b"Exif\0\0"):
            check_orientation(exif_value(segment[6:], ORIENTATION))
        elif marker == _APP2 and segment.startswith(b"MPF\0"):
            images = exif_value(segment[4:], MP_IMAGES)
            if images > 1:
                raise UserError(
                    f"holds {images} pictures (MPO); save each view as a file of its own"
                )
        if _needs(marker, segment):
            start = b"\xff%c%b" % (marker, (len(segment) + 2).to_bytes(2, "big"))
            kept.append(start + segment + scan)
            filled.append(kept[-1] + (_FILLER if marker == _SOS else b""))
    if size is None or not scans:
        raise damaged("JPEG", "no pixels")
    whole, twin = (b"".join((*parts, b"\xff\xd9")) for parts in (kept, filled))
    return Container(whole, *size, twin=twin)


def _segments(content: bytes) -> Iterable[tuple[int, bytes, bytes]]:
    """Yields marker, segment, and behind a start of scan its data, up to the end of image."""
    at = 2
    for _ in range(MOST_PARTS):
        found = _MARKER.search(content, at)
        if not found:
            raise damaged("JPEG", "truncated")
        marker, start = found[1][0], found.end()
        if marker == _EOI:
            return
        if marker == _SOI:
            raise damaged("JPEG", "starts twice")
        length = int.from_bytes(content[start : start + 2], "big")
        at = start + length
        if length < 2 or at > len(content):
            raise damaged("JPEG", "truncated")
        segment, scan = content[start + 2 : at], b""
        if marker == _SOS:
            behind = _MARKER.search(content, at)
            scan = content[at : behind.start()] if behind else b""
            at += len(scan)
        yield marker, segment, scan
    raise damaged("JPEG", f"more than {MOST_PARTS} segments")


def _needs(marker: int, segment: bytes) -> bool:
    if marker in (*_SOF, _SOS, _DHT, _DQT, _DRI):
        return True
    if _APP0 <= marker <= _APP15:
        # These two say how colours are encoded, and so whether there are any.
        names = {_APP0: b"JFIF\0", _APP14: b"Adobe"}
        return marker in names and segment.startswith(names[marker])
    if marker != _COM:
        raise UserError("is a JPEG of a rare kind (lossless, arithmetic or hierarchical); use PNG")
    return False


def _header(segment: bytes) -> tuple[int, int]:
    """Rows and columns."""
    bits, rows, columns, components = struct.unpack_from(">B2HB", segment)
    if bits != 8:
        raise UserError(f"is a JPEG with {bits} bits a pixel; 8 are read, use PNG for 16")
    if components not in (1, 3):
        raise UserError(COLOUR)
    check_size(rows, columns)
    return rows, columns
