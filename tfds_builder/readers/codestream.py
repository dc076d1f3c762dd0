"""What compressed data says of its own size, so that nothing absurd is ever allocated.

In: bytes. Out: the size and depth that a JPEG or JPEG 2000 codestream claims, whether a JPEG one is
cut off or lacks a table, and deflated data inflated within a bound. Decoders trust a codestream
more than the DICOM header beside it; files lie.
"""

import struct
import zlib
from collections.abc import Iterator

JPEG_START, J2K_START = b"\xff\xd8", b"\xff\x4f\xff\x51"
_JPEG_END = b"\xff\xd9"
# Start of frame: SOF0 to SOF15 but DHT (C4), JPG (C8) and DAC (CC), and JPEG-LS's SOF55.
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_HUFFMAN_FRAMES, _SEQUENTIAL_FRAMES = (0xC0, 0xC1, 0xC2, 0xC3), (0xC0, 0xC1)
_HUFFMAN_TABLES, _SCAN, _ALTERNATING = 0xC4, 0xDA, 0x10
_MARKERS_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
_MOST_TILES = 65_535


def claimed_size(frame: bytes) -> tuple[int, int, int, int] | None:
    """Rows, columns, components and bits a sample that a codestream claims; None: it says nothing.

    GDCM writes beyond the end of its memory where a lossless JPEG claims 255 bits.

    Args:
      frame: JPEG, JPEG-LS, JPEG 2000 or HTJ2K. RLE has no such header.
    """
    start = frame.find(J2K_START, 0, 4096)
    if start >= 0:
        return _j2k_size(frame[start + 4 : start + 44])
    for marker, segment in _jpeg_segments(frame):
        if marker in _FRAME_MARKERS:
            if len(segment) < 6:
                return None
            # ISO/IEC 10918-1, B.2.2.
            bits, rows, columns, components = struct.unpack_from(">B2HB", segment)
            return rows, columns, components, bits
    return None


def is_cut_off(frame: bytes) -> bool:
    """Whether a JPEG or JPEG-LS codestream lacks its end, which no data within it can look like.

    Decoders differ in what they make of one: CharLS spends many seconds on it before it fails.
    """
    return frame[:2] == JPEG_START and _JPEG_END not in frame


def lacks_tables(frame: bytes) -> bool:
    """Whether the first scan of a Huffman-coded JPEG is missing, or a table that it needs.

    GDCM ends the process where it is given such a one.
    """
    tables: set[int] = set()
    alternating = huffman = False
    for marker, segment in _jpeg_segments(frame):
        if marker in _FRAME_MARKERS:
            huffman = marker in _HUFFMAN_FRAMES
            alternating = marker in _SEQUENTIAL_FRAMES
        elif marker == _HUFFMAN_TABLES:
            tables |= _huffman_tables(segment)
        elif marker == _SCAN and huffman:
            chosen = segment[2 : 1 + 2 * segment[0] : 2] if segment else b""
            needed = {one >> 4 for one in chosen}
            needed |= {_ALTERNATING | one & 15 for one in chosen} if alternating else set()
            return not chosen or not needed <= tables
    return huffman


def _huffman_tables(segment: bytes) -> set[int]:
    """Class and number of the tables that a segment defines (ISO/IEC 10918-1, B.2.4.2)."""
    found, at = set(), 0
    while at + 17 <= len(segment):
        found.add(segment[at])
        at += 17 + sum(segment[at + 1 : at + 17])
    return found


def _j2k_size(segment: bytes) -> tuple[int, int, int, int] | None:
    """What the SIZ marker segment says (ISO/IEC 15444-1, A.5.1), from its length on."""
    if len(segment) < 39:
        return None
    *sizes, components, depth = struct.unpack_from(">8IHB", segment, 4)
    right, bottom, left, top, tile_width, tile_height, tiles_left, tiles_top = sizes
    columns, rows = right - left, bottom - top
    if min(columns, rows, tile_width, tile_height) < 1:
        return None
    tiles = -(-(right - tiles_left) // tile_width) * -(-(bottom - tiles_top) // tile_height)
    return (rows, columns, components, (depth & 0x7F) + 1) if 0 < tiles <= _MOST_TILES else None


def _jpeg_segments(frame: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the marker segments up to the first scan's header, or up to what is none."""
    at = 2 if frame[:2] == JPEG_START else len(frame)
    while at + 4 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker in _MARKERS_WITHOUT_LENGTH:
            at += 2
        else:
            end = at + 2 + max(int.from_bytes(frame[at + 2 : at + 4], "big"), 2)
            yield marker, frame[at + 4 : end]
            at = len(frame) if marker == _SCAN else end


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
