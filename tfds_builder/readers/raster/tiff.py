"""Cuts a page out of a TIFF with the tags that its pixels need, and checks what it claims.

In: the content of a file. Out: the same pixels without texts, dates, profiles and further pages.
"""

import numpy as np

from tfds_builder.commandline.errors import UserError
from tfds_builder.readers.raster.container import (
    COLOUR,
    DEEP_COLOUR,
    Container,
    bits_refused,
    check_frame,
    check_orientation,
    check_size,
    damaged,
)
from tfds_builder.readers.raster.directory import ORIENTATION, Directory, Tiff
from tfds_builder.readers.scintigram import MAX_PIXELS

BITS = 258

WIDTH, LENGTH, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 259, 262, 266
_STRIP_OFFSETS, _SAMPLES, _STRIP_ROWS, _STRIP_BYTES = 273, 277, 278, 279
_PLANAR, _PREDICTOR, _COLOUR_MAP, _TILE_WIDTH, _TILE_LENGTH = 284, 317, 320, 322, 323
_TILE_OFFSETS, _TILE_BYTES, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 324, 325, 338, 339
_KEPT = (WIDTH, LENGTH, BITS, _COMPRESSION, _SAMPLES, _PLANAR, _COLOUR_MAP, _EXTRA_SAMPLES)
_STRIPS = (_STRIP_OFFSETS, _STRIP_ROWS, _STRIP_BYTES)
_TILES = (_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_BYTES)
_UNCOMPRESSED, _LZW, _DEFLATE, _OLD_DEFLATE, _PACK_BITS = 1, 5, 8, 32946, 32773
_PREDICTED = (_LZW, _DEFLATE, _OLD_DEFLATE)
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4


def cut_tiff(content: bytes, frame: int | None) -> Container:
    """Keeps the file's bytes, and of its tags those that say how the pixels of one page lie in it.

    `frame` is that page, from 1, or None where there is one.
    """
    tiff = Tiff(content)
    pages = tiff.pages()
    check_frame(frame, len(pages))
    page = tiff.directory(pages[(frame or 1) - 1])
    check_size(page.one(LENGTH), page.one(WIDTH))
    return cut_page(page, len(pages))


def cut_page(page: Directory, pages: int = 1) -> Container:
    """Keeps the page that a directory is of, of any size; the rest is as for `cut_tiff`."""
    rows, columns = page.one(LENGTH), page.one(WIDTH)
    check_orientation(page.one(ORIENTATION, 0))
    bits, form, photometric = _pixels(page)
    compression = _compression(page, bits)
    layout = _TILES if _TILE_WIDTH in page else _STRIPS
    samples = page.one(_SAMPLES, 1)
    _check_pieces(page, rows, columns, bits * samples, compression == _UNCOMPRESSED)
    only = {t: page.values(t) for t in (*_KEPT, *layout) if t in page}
    if compression in _PREDICTED:
        predictor = page.one(_PREDICTOR, 1)
        if predictor not in ((1, 2, 3) if form == _FLOAT else (1, 2)):
            raise damaged("TIFF", "predictor")
        only[_PREDICTOR] = np.array([predictor])
    # Pillow inverts 8 bits but not 16, and refuses unsigned 32 bits in one byte order.
    only[_PHOTOMETRIC] = np.array([photometric or 1])
    whole = _UNSIGNED if bits < 32 else _SIGNED
    only[_SAMPLE_FORMAT] = np.array([_FLOAT if form == _FLOAT else whole])
    return Container(
        page.with_only(only),
        rows,
        columns,
        pages=pages,
        signed=form == _SIGNED,
        white_is_zero=photometric == 0,
    )


def _pixels(page: Directory) -> tuple[int, int, int]:
    """Bits a sample, sample format, photometric interpretation."""
    photometric = page.one(_PHOTOMETRIC, 1)
    if photometric not in (0, 1, 2, 3):
        raise UserError(COLOUR)
    samples = page.one(_SAMPLES, 1)
    bits, form = (_common(page, tag) for tag in (BITS, _SAMPLE_FORMAT))
    if bits == 16 and (samples > 1 or photometric > 1):
        raise UserError(DEEP_COLOUR)
    if bits not in ((8, 16, 32) if samples == 1 and photometric < 2 else (8,)):
        raise bits_refused(bits)
    forms = {8: (_UNSIGNED,), 16: (_UNSIGNED, _SIGNED), 32: (_UNSIGNED, _SIGNED, _FLOAT)}
    form = _UNSIGNED if form == _UNDEFINED else form
    if form not in forms[bits]:
        raise UserError(f"has {bits}-bit pixels that are not unsigned whole numbers")
    if samples > 1 and page.one(_PLANAR, 1) != 1:
        raise UserError("stores its channels apart; export it as grey values")
    if page.one(_FILL_ORDER, 1) != 1:
        raise UserError("stores its bits in reverse order; save it anew")
    return bits, form, photometric


def _common(page: Directory, tag: int) -> int:
    """What BitsPerSample or SampleFormat say of every sample; 1 where they say nothing."""
    if tag not in page:
        return 1
    said = np.unique(page.values(tag))
    if len(said) != 1:
        raise UserError("has samples of different kinds; export it as grey values")
    return int(said[0])


def _compression(page: Directory, bits: int) -> int:
    compression = page.one(_COMPRESSION, 1)
    if compression not in (_UNCOMPRESSED, _PACK_BITS, *_PREDICTED):
        raise UserError(
            f"is a TIFF of compression {compression}, which is not read; save it uncompressed, or "
            "with LZW or deflate"
        )
    if compression != _UNCOMPRESSED and bits == 32 and page.order == ">":
        # Pillow confuses their byte order.
        raise UserError("is a compressed big-endian 32-bit TIFF; save it uncompressed")
    return compression


def _check_pieces(page: Directory, rows: int, columns: int, bits: int, uncompressed: bool) -> None:
    """Checks that strips or tiles cover the picture once, and lie in the file."""
    if _TILE_WIDTH in page:
        height, width = page.one(_TILE_LENGTH), page.one(_TILE_WIDTH)
        if height % 16 or width % 16 or not 0 < height * width <= MAX_PIXELS:
            raise damaged("TIFF", "tiles")
        number, tags = -(-rows // height) * -(-columns // width), (_TILE_OFFSETS, _TILE_BYTES)
        needed = number * height * width * bits // 8
    else:
        height = page.one(_STRIP_ROWS, rows)
        if height < 1:
            raise damaged("TIFF", "strips")
        number, tags = -(-rows // height), (_STRIP_OFFSETS, _STRIP_BYTES)
        needed = rows * columns * bits // 8
    offsets, sizes = (page.values(tag) for tag in tags)
    if len(offsets) != number or len(sizes) != number:
        raise damaged("TIFF", "number of strips or tiles")
    size = len(page.content)
    # Sizes are below 2**32 each, and few, so that their sum is exact.
    if max(offsets.max(), sizes.max()) > size or (offsets.astype("u8") + sizes > size).any():
        raise damaged("TIFF", "truncated")
    total = int(sizes.sum(dtype="u8"))
    if total > size or (uncompressed and total < needed):
        raise damaged("TIFF", "sizes of strips or tiles")
