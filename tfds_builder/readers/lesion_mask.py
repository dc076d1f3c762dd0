"""Reads a lesion mask: a multi-page TIFF, page n for frame n, lesion numbers from 1, 0 for none.

In: the bytes of the TIFF and the matrix that the image file has. Out: one uint8 mask a frame.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from tfds_builder.commandline.errors import UserError
from tfds_builder.readers.raster.container import bits_refused
from tfds_builder.readers.raster.directory import TIFF_STARTS, Tiff
from tfds_builder.readers.raster.reader import decoded
from tfds_builder.readers.raster.tiff import BITS, LENGTH, WIDTH, cut_page
from tfds_builder.readers.scintigram import own_words


def read_masks(
    content: bytes, frames: tuple[int, ...], pages: int, rows: int, columns: int
) -> list[np.ndarray]:
    """Reads the pages that belong to some frames: uint8 (rows, columns) for each.

    Args:
      content: a TIFF with one 8-bit page a frame, of one channel: grey values or a palette, whose
        numbers are taken and not its colours.
      frames: the frame numbers wanted, from 1.
      pages: how many frames the image file has.
      rows, columns: its matrix.

    Raises:
      UserError: damaged, of a kind of TIFF that is not read, shown turned or mirrored, not 8 bits a
        pixel, or not of the image's pages and matrix.
      MemoryError: as for `raster.read_raster`.
    """
    if content[:4] not in TIFF_STARTS:
        raise UserError("lesion mask is not a TIFF")
    with _named("lesion mask"):
        tiff = Tiff(content)
        found = tiff.pages()
    if len(found) != pages:
        raise UserError(f"lesion mask has {len(found)} pages, but its image {pages} frames")
    return [_read_page(tiff, found[frame - 1], frame, rows, columns) for frame in frames]


def _read_page(tiff: Tiff, at: int, frame: int, rows: int, columns: int) -> np.ndarray:
    with _named(f"lesion mask, page {frame}"):
        page = tiff.directory(at)
        bits = page.one(BITS, 1)
        if bits != 8:
            raise bits_refused(bits, "8")
        height, width = page.one(LENGTH), page.one(WIDTH)
        if (height, width) == (rows, columns):
            container = cut_page(page)
            image = decoded("TIFF", container.content, container)
            if image.mode not in ("L", "P"):
                raise UserError(f"has the channels {image.mode}; one is read")
            mask = np.array(image, np.uint8)
            return ~mask if container.white_is_zero else mask
    raise UserError(
        f"lesion mask has {height}x{width} pixels on page {frame}, but the image "
        f"{rows}x{columns}; a lesion mask has the matrix of its image"
    )


@contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        with own_words("TIFF"):
            yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
