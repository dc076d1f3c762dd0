"""Cuts a PNG, TIFF or JPEG down to the bytes that its pixels need, and checks what it claims.

In: the content of a file. Out: the same picture without texts, dates, profiles, thumbnails or
further pages, and its matrix, checked before anything of that size is allocated. Decoders guard
their memory well, but not their time, and none of them says that a picture stops short.
"""

import re
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tfds_builder.errors import DataError
from tfds_builder.scintigram import MAX_PIXELS

MIN_SIDE = 16
COLOUR = "is a colour image (a screen capture?); export it as grey values"
DEEP_COLOUR = (
    "has 16 bits a channel beside colour or transparency, of which 8 would be lost; "
    "export it as 16-bit grey values"
)

# More than any picture has, and few enough to walk in no time.
_MOST_PARTS = 2**16
_MOST_PAGES = 1024
_MOST_SCANS = 32

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
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

_JPEG_START = b"\xff\xd8\xff"
_JPEG_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
_SOF, _DHT, _SOI, _EOI, _SOS = (0xC0, 0xC1, 0xC2), 0xC4, 0xD8, 0xD9, 0xDA
_DQT, _DRI, _APP0, _APP1, _APP2, _APP14, _APP15, _COM = 219, 221, 224, 225, 226, 238, 239, 254
# Entropy-coded data that no picture has there: no byte of it is 255, nor is it regular.
_FILLER = bytes(n * n * 31 % 251 for n in range(2048))

_TIFF_STARTS = {
    b"II*\0": ("<", False),
    b"MM\0*": (">", False),
    b"II+\0": ("<", True),
    b"MM\0+": (">", True),
}
_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _STRIP_ROWS, _STRIP_BYTES = 273, 274, 277, 278, 279
_PLANAR, _PREDICTOR, _COLOUR_MAP, _TILE_WIDTH, _TILE_LENGTH = 284, 317, 320, 322, 323
_TILE_OFFSETS, _TILE_BYTES, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 324, 325, 338, 339
_TIFF_KEPT = (_WIDTH, _LENGTH, _BITS, _COMPRESSION, _SAMPLES, _PLANAR, _COLOUR_MAP, _EXTRA_SAMPLES)
_STRIPS = (_STRIP_OFFSETS, _STRIP_ROWS, _STRIP_BYTES)
_TILES = (_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_BYTES)
_UNCOMPRESSED, _LZW, _DEFLATE, _OLD_DEFLATE, _PACK_BITS = 1, 5, 8, 32946, 32773
_PREDICTED = (_LZW, _DEFLATE, _OLD_DEFLATE)
_MP_IMAGES = 0xB001
_SHORT, _LONG = 3, 4
_TIFF_TYPES = {1: "u1", _SHORT: "u2", _LONG: "u4", 16: "u8"}
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4


@dataclass(frozen=True)
class Container:
    """One picture, still encoded.

    Attributes:
      content: a file of the same format that holds this picture and nothing else.
      rows, columns: its matrix; not wider than high, no more than `MAX_PIXELS`.
      pages: pictures in the file.
      twin: None, or a second file that decodes to the same pixels unless the picture stops short.
      signed: whether 16-bit pixels are to be read as signed.
      white_is_zero: whether 0 is shown white.
    """

    content: bytes
    rows: int
    columns: int
    pages: int = 1
    twin: bytes | None = None
    signed: bool = False
    white_is_zero: bool = False


def kind_of(content: bytes) -> str | None:
    """'PNG', 'TIFF' or 'JPEG' by the first bytes, or None."""
    if content.startswith(_PNG_START):
        return "PNG"
    if content.startswith(_JPEG_START):
        return "JPEG"
    return "TIFF" if content[:4] in _TIFF_STARTS else None


def cut(kind: str, content: bytes, frame: int | None) -> Container:
    """Cuts out one picture.

    Args:
      kind: as `kind_of` says.
      content: the whole file.
      frame: TIFF page from 1, or None where there is one.

    Raises:
      DataError: a picture that cannot be used, or is damaged.
      Exception: of nearly any type, where damage leads nowhere.
    """
    if kind == "TIFF":
        return _cut_tiff(content, frame)
    _check_frame(frame, 1)
    return _cut_png(content) if kind == "PNG" else _cut_jpeg(content)


def _check_frame(frame: int | None, pages: int) -> None:
    if frame is None and pages > 1:
        raise DataError(f"has {pages} pages; add a row with 'frame' for each view")
    if frame is not None and not 1 <= frame <= pages:
        raise DataError(f"frame {frame} is asked for, but the file has {pages}; mend the manifest")


def _check_size(rows: int, columns: int) -> None:
    if columns > rows:
        raise DataError(
            f"is {columns}x{rows}, wider than high: both views side by side, or lying on its side? "
            "crop or turn it"
        )
    if columns < MIN_SIDE:
        raise DataError(f"is {columns}x{rows}; a view has at least {MIN_SIDE}x{MIN_SIDE} pixels")
    if rows * columns > MAX_PIXELS:
        raise DataError(f"claims {columns}x{rows} pixels, more than {MAX_PIXELS}")


def _check_orientation(orientation: int) -> None:
    """Cameras write no such tag; whoever did has turned the scan, or its left for its right.

    Nothing tells whether the pixels were turned too, so neither obeying nor ignoring it is safe.
    """
    if 2 <= orientation <= 8:
        raise DataError(
            f"carries the orientation tag {orientation}: shown turned or mirrored; "
            "save it as it is to be read, without that tag"
        )


def _bits_refused(bits: int) -> DataError:
    return DataError(f"has {bits} bit{'s' if bits > 1 else ''} a pixel; 8 or 16 are read")


def _damaged(kind: str, what: str) -> DataError:
    return DataError(f"damaged {kind} ({what})")


def _cut_png(content: bytes) -> Container:
    whole = memoryview(content)
    header, kept, pixels = None, [whole[:8]], []
    for name, chunk in _png_chunks(whole):
        data = chunk[8:-4]
        if name in _PNG_KEPT:
            _check_sum(chunk)
            kept.append(chunk)
        if name == b"tRNS":
            raise DataError("declares transparent pixels; export it without transparency")
        if name == b"IHDR":
            if header:
                raise _damaged("PNG", "two headers")
            header = _png_header(data)
        elif name == b"IDAT":
            pixels.append(data)
        elif name == b"acTL":
            _check_still(data)
        elif name == b"eXIf":
            _check_orientation(_exif_value(bytes(data), _ORIENTATION))
        elif name not in _PNG_KEPT and name[:1].isupper():
            raise _damaged("PNG", "unknown critical chunk")
    if header is None:
        raise _damaged("PNG", "no header")
    columns, rows, bits, colour, interlaced = header
    size = _png_size(rows, columns, bits * _PNG_SAMPLES[colour], interlaced)
    if not _inflates_to(size, pixels):
        raise _damaged("PNG", "truncated")
    return Container(b"".join(kept), rows, columns)


def _png_chunks(whole: memoryview) -> Iterable[tuple[bytes, memoryview]]:
    at = len(_PNG_START)
    for number in range(_MOST_PARTS):
        if len(whole) < at + 12:
            raise _damaged("PNG", "truncated")
        length, name = struct.unpack_from(">I4s", whole, at)
        end = at + length + 12
        if end > len(whole):
            raise _damaged("PNG", "truncated")
        if (number == 0) != (name == b"IHDR"):
            raise _damaged("PNG", "header not first")
        yield name, whole[at:end]
        if name == b"IEND":
            return
        at = end
    raise _damaged("PNG", f"more than {_MOST_PARTS} chunks")


def _check_sum(chunk: memoryview) -> None:
    if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
        raise _damaged("PNG", "checksum")


def _png_header(data: memoryview) -> tuple[int, int, int, int, bool]:
    """Columns, rows, bits a sample, colour type, and whether it is interlaced."""
    columns, rows, bits, colour, compression, filtering, interlace = struct.unpack(">2I5B", data)
    if colour not in _PNG_SAMPLES or compression or filtering or interlace > 1:
        raise _damaged("PNG", "header")
    if bits == 16 and colour:
        raise DataError(DEEP_COLOUR)
    if bits not in ((2, 4, 8) if colour == 3 else (8, 16)):
        raise _bits_refused(bits)
    _check_size(rows, columns)
    return columns, rows, bits, colour, bool(interlace)


def _check_still(animation: memoryview) -> None:
    frames = int.from_bytes(animation[:4], "big")
    if frames > 1:
        raise DataError(f"is an animation of {frames} frames; save each view as a file of its own")


def _png_size(rows: int, columns: int, bits: int, interlaced: bool) -> int:
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


def _cut_jpeg(content: bytes) -> Container:
    """Keeps frame, tables and scans. The twin has filler behind each scan.

    Where a scan stops short, libjpeg makes up the rest and says nothing; it then also takes the
    filler for pixels.
    """
    kept, filled, size, scans = [b"\xff\xd8"], [b"\xff\xd8"], None, 0
    for marker, segment, scan in _jpeg_segments(content):
        if marker in _SOF:
            if size:
                raise _damaged("JPEG", "two headers")
            size = _jpeg_header(segment)
        elif marker == _SOS:
            scans += 1
            if size is None or scans > _MOST_SCANS:
                raise _damaged("JPEG", "no header" if size is None else "too many scans")
        elif marker == _APP1 and segment.startswith(b"Exif\0\0"):
            _check_orientation(_exif_value(segment[6:], _ORIENTATION))
        elif marker == _APP2 and segment.startswith(b"MPF\0"):
            _check_single(_exif_value(segment[4:], _MP_IMAGES))
        if _jpeg_needs(marker, segment):
            start = b"\xff%c%b" % (marker, (len(segment) + 2).to_bytes(2, "big"))
            kept += [start, segment, scan]
            filled += [start, segment, scan, _FILLER if marker == _SOS else b""]
    if not scans:
        raise _damaged("JPEG", "no pixels")
    kept.append(b"\xff\xd9")
    filled.append(b"\xff\xd9")
    return Container(b"".join(kept), *size, twin=b"".join(filled))


def _jpeg_segments(content: bytes) -> Iterable[tuple[int, bytes, bytes]]:
    """Yields marker, segment, and behind a start of scan its data, up to the end of image."""
    at = 2
    for _ in range(_MOST_PARTS):
        found = _JPEG_MARKER.search(content, at)
        if not found:
            raise _damaged("JPEG", "truncated")
        marker, start = found[1][0], found.end()
        if marker == _EOI:
            return
        if marker == _SOI:
            raise _damaged("JPEG", "starts twice")
        length = int.from_bytes(content[start : start + 2], "big")
        at = start + length
        if length < 2 or at > len(content):
            raise _damaged("JPEG", "truncated")
        segment, scan = content[start + 2 : at], b""
        if marker == _SOS:
            behind = _JPEG_MARKER.search(content, at)
            scan = content[at : behind.start()] if behind else b""
            at += len(scan)
        yield marker, segment, scan
    raise _damaged("JPEG", f"more than {_MOST_PARTS} segments")


def _jpeg_needs(marker: int, segment: bytes) -> bool:
    if marker in (*_SOF, _SOS, _DHT, _DQT, _DRI):
        return True
    if _APP0 <= marker <= _APP15:
        # These two say how colours are encoded, and so whether there are any.
        names = {_APP0: b"JFIF\0", _APP14: b"Adobe"}
        return marker in names and segment.startswith(names[marker])
    if marker != _COM:
        raise DataError("is a JPEG of a rare kind (lossless, arithmetic or hierarchical); use PNG")
    return False


def _jpeg_header(segment: bytes) -> tuple[int, int]:
    """Rows and columns."""
    bits, rows, columns, components = struct.unpack_from(">B2HB", segment)
    if bits != 8:
        raise DataError(f"is a JPEG with {bits} bits a pixel; 8 are read, use PNG for 16")
    if components not in (1, 3):
        raise DataError(COLOUR)
    _check_size(rows, columns)
    return rows, columns


def _check_single(images: int) -> None:
    if images > 1:
        raise DataError(f"holds {images} pictures (MPO); save each view as a file of its own")


def _exif_value(content: bytes, tag: int) -> int:
    """A number in the first directory of EXIF or multi-picture data; 0 where there is none."""
    try:
        tiff = _Tiff.of(content)
        directory, _ = tiff.directory(tiff.first)
        return tiff.one(directory, tag, 0)
    except (DataError, LookupError, struct.error, ValueError):
        return 0


@dataclass(frozen=True)
class _Entry:
    """A tag's type, how many values it has, and the field that holds or locates them."""

    type: int
    count: int
    field: bytes


_Directory = dict[int, _Entry]


@dataclass(frozen=True)
class _Tiff:
    """Reads the numbers of a TIFF (TIFF 6.0; BigTIFF where `big`)."""

    content: bytes
    order: str
    big: bool

    @classmethod
    def of(cls, content: bytes) -> "_Tiff":
        return cls(content, *_TIFF_STARTS[content[:4]])

    @property
    def first(self) -> int:
        """Where the first directory lies."""
        return self._number("Q", 8) if self.big else self._number("I", 4)

    def pages(self) -> list[int]:
        """Where each page's directory lies."""
        found: dict[int, None] = {}
        at = self.first
        while at:
            if at in found:
                raise _damaged("TIFF", "pages in a loop")
            if len(found) == _MOST_PAGES:
                raise DataError(f"has more than {_MOST_PAGES} pages; save each view as a file")
            found[at] = None
            at = self._next(at)
        if not found:
            raise _damaged("TIFF", "no pages")
        return list(found)

    def directory(self, at: int) -> tuple[_Directory, int]:
        """The entries of the directory that lies there, and how many bytes it takes."""
        count, size, entry = self._extent(at)
        entries: _Directory = {}
        if count > _MOST_PARTS or at + size > len(self.content):
            raise _damaged("TIFF", "directory")
        for values in struct.iter_unpack(entry, self.content[at + self._head : at + size]):
            entries.setdefault(values[0], _Entry(*values[1:]))
        return entries, size

    def values(self, directory: _Directory, tag: int) -> np.ndarray:
        """All whole numbers of a tag that is there."""
        entry = directory[tag]
        dtype = np.dtype(self.order + _TIFF_TYPES[entry.type])
        size = entry.count * dtype.itemsize
        if size <= len(entry.field):
            return np.frombuffer(entry.field[:size], dtype)
        at = int.from_bytes(entry.field, "little" if self.order == "<" else "big")
        if at + size > len(self.content):
            raise _damaged("TIFF", "truncated")
        return np.frombuffer(self.content, dtype, entry.count, at)

    def one(self, directory: _Directory, tag: int, default: int | None = None) -> int:
        """The only or first number of a tag."""
        if tag not in directory and default is not None:
            return default
        return int(self.values(directory, tag)[0])

    def with_only(self, numbers: dict[int, np.ndarray]) -> bytes:
        """The same file, never a BigTIFF, with these tags in its only directory, behind its end."""
        at = -(-len(self.content) // 8) * 8
        far = at + 2 + 12 * len(numbers) + 4
        entries, arrays = [], []
        for tag, values in sorted(numbers.items()):
            kind = _SHORT if values.max() < 2**16 else _LONG
            field = values.astype(self.order + _TIFF_TYPES[kind]).tobytes()
            if len(field) > 4:
                arrays.append(field)
                field = struct.pack(self.order + "I", far)
                far += len(arrays[-1])
            head = struct.pack(self.order + "HHI", tag, kind, len(values))
            entries.append(head + field.ljust(4, b"\0"))
        start = {"<": b"II*\0", ">": b"MM\0*"}[self.order] + struct.pack(self.order + "I", at)
        count = struct.pack(self.order + "H", len(numbers))
        gap = bytes(at - len(self.content))
        rest = memoryview(self.content)[len(start) :]
        return b"".join((start, rest, gap, count, *entries, bytes(4), *arrays))

    @property
    def _head(self) -> int:
        return 8 if self.big else 2

    def _extent(self, at: int) -> tuple[int, int, str]:
        """A directory's number of entries, its bytes up to the next pointer, an entry's layout."""
        layout = self.order + ("HHQ8s" if self.big else "HHI4s")
        count = self._number("Q" if self.big else "H", at)
        return count, self._head + count * struct.calcsize(layout), layout

    def _next(self, at: int) -> int:
        _, size, _ = self._extent(at)
        return self._number("Q" if self.big else "I", at + size)

    def _number(self, layout: str, at: int) -> int:
        return struct.unpack_from(self.order + layout, self.content, at)[0]


def _cut_tiff(content: bytes, frame: int | None) -> Container:
    tiff = _Tiff.of(content)
    pages = tiff.pages()
    _check_frame(frame, len(pages))
    directory, _ = tiff.directory(pages[(frame or 1) - 1])
    rows, columns = tiff.one(directory, _LENGTH), tiff.one(directory, _WIDTH)
    _check_size(rows, columns)
    _check_orientation(tiff.one(directory, _ORIENTATION, 0))
    bits, form, photometric = _tiff_pixels(tiff, directory)
    compression = _tiff_compression(tiff, directory, bits)
    layout = _TILES if _TILE_WIDTH in directory else _STRIPS
    samples = tiff.one(directory, _SAMPLES, 1)
    _check_pieces(tiff, directory, rows, columns, bits * samples, compression == _UNCOMPRESSED)
    only = {t: tiff.values(directory, t) for t in (*_TIFF_KEPT, *layout) if t in directory}
    if compression in _PREDICTED:
        only[_PREDICTOR] = _tiff_predictor(tiff, directory, form)
    # Pillow inverts 8 bits but not 16, and refuses unsigned 32 bits in one byte order.
    only[_PHOTOMETRIC] = np.array([photometric or 1])
    whole = _UNSIGNED if bits < 32 else _SIGNED
    only[_SAMPLE_FORMAT] = np.array([_FLOAT if form == _FLOAT else whole])
    return Container(
        tiff.with_only(only),
        rows,
        columns,
        pages=len(pages),
        signed=form == _SIGNED,
        white_is_zero=photometric == 0,
    )


def _tiff_pixels(tiff: _Tiff, directory: _Directory) -> tuple[int, int, int]:
    """Bits a sample, sample format, photometric interpretation."""
    photometric = tiff.one(directory, _PHOTOMETRIC, 1)
    if photometric not in (0, 1, 2, 3):
        raise DataError(COLOUR)
    samples = tiff.one(directory, _SAMPLES, 1)
    bits, form = (_common(tiff, directory, tag) for tag in (_BITS, _SAMPLE_FORMAT))
    if bits == 16 and (samples > 1 or photometric > 1):
        raise DataError(DEEP_COLOUR)
    if bits not in ((8, 16, 32) if samples == 1 and photometric < 2 else (8,)):
        raise _bits_refused(bits)
    forms = {8: (_UNSIGNED,), 16: (_UNSIGNED, _SIGNED), 32: (_UNSIGNED, _SIGNED, _FLOAT)}
    form = _UNSIGNED if form == _UNDEFINED else form
    if form not in forms[bits]:
        raise DataError(f"has {bits}-bit pixels that are not unsigned whole numbers")
    if samples > 1 and tiff.one(directory, _PLANAR, 1) != 1:
        raise DataError("stores its channels apart; export it as grey values")
    if tiff.one(directory, _FILL_ORDER, 1) != 1:
        raise DataError("stores its bits in reverse order; save it anew")
    return bits, form, photometric


def _common(tiff: _Tiff, directory: _Directory, tag: int) -> int:
    """What BitsPerSample or SampleFormat say of every sample; 1 where they say nothing."""
    if tag not in directory:
        return 1
    said = np.unique(tiff.values(directory, tag))
    if len(said) != 1:
        raise DataError("has samples of different kinds; export it as grey values")
    return int(said[0])


def _tiff_compression(tiff: _Tiff, directory: _Directory, bits: int) -> int:
    compression = tiff.one(directory, _COMPRESSION, 1)
    if compression not in (_UNCOMPRESSED, _PACK_BITS, *_PREDICTED):
        raise DataError(
            f"is a TIFF of compression {compression}, which is not read; save it uncompressed, or "
            "with LZW or deflate"
        )
    if compression != _UNCOMPRESSED and bits == 32 and tiff.order == ">":
        # Pillow confuses their byte order.
        raise DataError("is a compressed big-endian 32-bit TIFF; save it uncompressed")
    return compression


def _tiff_predictor(tiff: _Tiff, directory: _Directory, form: int) -> np.ndarray:
    predictor = tiff.one(directory, _PREDICTOR, 1)
    if predictor not in ((1, 2, 3) if form == _FLOAT else (1, 2)):
        raise _damaged("TIFF", "predictor")
    return np.array([predictor])


def _check_pieces(
    tiff: _Tiff, directory: _Directory, rows: int, columns: int, bits: int, uncompressed: bool
) -> None:
    """Checks that strips or tiles cover the picture once, and lie in the file."""
    if _TILE_WIDTH in directory:
        height, width = tiff.one(directory, _TILE_LENGTH), tiff.one(directory, _TILE_WIDTH)
        if height % 16 or width % 16 or not 0 < height * width <= MAX_PIXELS:
            raise _damaged("TIFF", "tiles")
        number, tags = -(-rows // height) * -(-columns // width), (_TILE_OFFSETS, _TILE_BYTES)
        needed = number * height * width * bits // 8
    else:
        height = tiff.one(directory, _STRIP_ROWS, rows)
        if height < 1:
            raise _damaged("TIFF", "strips")
        number, tags = -(-rows // height), (_STRIP_OFFSETS, _STRIP_BYTES)
        needed = rows * columns * bits // 8
    offsets, sizes = (tiff.values(directory, tag) for tag in tags)
    if len(offsets) != number or len(sizes) != number:
        raise _damaged("TIFF", "number of strips or tiles")
    size = len(tiff.content)
    # Sizes are below 2**32 each, and few, so that their sum is exact.
    if max(offsets.max(), sizes.max()) > size or (offsets.astype("u8") + sizes > size).any():
        raise _damaged("TIFF", "truncated")
    total = int(sizes.sum(dtype="u8"))
    if total > size or (uncompressed and total < needed):
        raise _damaged("TIFF", "sizes of strips or tiles")
