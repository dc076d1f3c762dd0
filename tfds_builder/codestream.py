"""What compressed data says of its own size, so that nothing absurd is ever allocated.

In: bytes. Out: the size and depth that a JPEG or JPEG 2000 codestream claims, whether a JPEG one is
cut off, and deflated data inflated within a bound. Decoders trust a codestream more than the DICOM
header beside it; files lie.
"""

import struct
import zlib

_J2K_START = b"\xff\x4f\xff\x51"
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
# Start of frame: SOF0 to SOF15 but DHT (C4), JPG (C8) and DAC (CC), and JPEG-LS's SOF55.
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_MARKERS_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
_MOST_TILES = 65_535
_J2K_BITS = 38


def claimed_size(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and components that a codestream claims, or None where it says nothing.

    Args:
      frame: JPEG, JPEG-LS, JPEG 2000 or HTJ2K. RLE has no such header.
    """
    segment = _j2k_segment(frame)
    if segment:
        return _j2k_size(segment)
    header = _jpeg_header(frame)
    return header[1:] if header else None


def claimed_bits(frame: bytes) -> int | None:
    """Bits a sample that a codestream claims, or None where it says nothing.

    GDCM writes beyond the end of its memory where a lossless JPEG claims 255.
    """
    segment = _j2k_segment(frame)
    if segment:
        return (segment[_J2K_BITS] & 0x7F) + 1 if len(segment) > _J2K_BITS else None
    header = _jpeg_header(frame)
    return header[0] if header else None


def is_cut_off(frame: bytes) -> bool:
    """Whether a JPEG or JPEG-LS codestream lacks its end, which no data within it can look like.

    Decoders differ in what they make of one: CharLS spends many seconds on it before it fails.
    """
    return frame[:2] == _JPEG_START and _JPEG_END not in frame


def _j2k_segment(frame: bytes) -> bytes:
    """The SIZ marker segment (ISO/IEC 15444-1, A.5.1), from its length on; nothing in a JPEG."""
    start = frame.find(_J2K_START, 0, 4096)
    return frame[start + 4 : start + 44] if start >= 0 else b""


def _j2k_size(segment: bytes) -> tuple[int, int, int] | None:
    if len(segment) < 38:
        return None
    fields = struct.unpack(">2H8IH", segment[:38])
    right, bottom, left, top, tile_width, tile_height, tiles_left, tiles_top, components = fields[
        2:
    ]
    columns, rows = right - left, bottom - top
    if min(columns, rows, tile_width, tile_height) < 1:
        return None
    tiles = -(-(right - tiles_left) // tile_width) * -(-(bottom - tiles_top) // tile_height)
    return (rows, columns, components) if 0 < tiles <= _MOST_TILES else None


def _jpeg_header(frame: bytes) -> tuple[int, int, int, int] | None:
    """Bits a sample, rows, columns and components, found by walking the marker segments.

    They stand in the frame header (ISO/IEC 10918-1, B.2.2).
    """
    if frame[:2] != _JPEG_START:
        return None
    at = 2
    while at + 4 <= len(frame):
        if frame[at] != 0xFF:
            return None
        marker = frame[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker in _MARKERS_WITHOUT_LENGTH:
            at += 2
        elif marker in _FRAME_MARKERS:
            return (
                struct.unpack(">B2HB", frame[at + 4 : at + 10]) if at + 10 <= len(frame) else None
            )
        else:
            at += 2 + max(int.from_bytes(frame[at + 2 : at + 4], "big"), 2)
    return None


def inflated(deflated: bytes, most: int) -> bytes | None:
    """Raw deflated data, inflated; None where that is more than so many bytes.

    Raises:
      zlib.error: it is damaged, or ends too early.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(deflated, most + 1)
    if len(data) > most:
        return None
    if not inflater.eof:
        raise zlib.error("incomplete")
    return data
