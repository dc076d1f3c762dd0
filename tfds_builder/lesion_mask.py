"""Reads a lesion mask: a multi-page TIFF, page n for frame n, lesion numbers from 1, 0 for none.

In: the TIFF's path and the matrix that the image file has. Out: one uint8 mask a frame.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from tfds_builder.errors import DataError


def check_masks(path: Path, pages: int, rows: int, columns: int) -> None:
    """Checks pages and matrix without decoding; arguments and errors as for `read_masks`."""
    with _tiff(path, pages) as tiff:
        for frame in range(1, pages + 1):
            _seek(path, tiff, frame, rows, columns)


def read_masks(
    path: Path, frames: tuple[int, ...], pages: int, rows: int, columns: int
) -> list[np.ndarray]:
    """Reads the pages that belong to some frames.

    Args:
      path: a TIFF with one 8-bit page a frame.
      frames: the frame numbers wanted, from 1.
      pages: how many frames the image file has.
      rows, columns: its matrix.

    Returns:
      uint8 (rows, columns) for each of `frames`.

    Raises:
      DataError: unreadable, not 8 bits a pixel, or not of the image's pages and matrix.
    """
    masks = []
    with _tiff(path, pages) as tiff:
        for frame in frames:
            _seek(path, tiff, frame, rows, columns)
            masks.append(np.array(tiff, np.uint8))
    return masks


@contextmanager
def _tiff(path: Path, pages: int) -> Iterator[Image.Image]:
    """Opens a TIFF of so many pages; Pillow raises nearly anything on malformed files."""
    try:
        with Image.open(path, formats=("TIFF",)) as tiff:
            if tiff.n_frames != pages:
                raise DataError(
                    f"{path}: lesion mask has {tiff.n_frames} pages, but its image {pages} frames"
                )
            yield tiff
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: cannot be read as a TIFF lesion mask ({error})") from None


def _seek(path: Path, tiff: Image.Image, frame: int, rows: int, columns: int) -> None:
    tiff.seek(frame - 1)
    if tiff.size != (columns, rows):
        raise DataError(
            f"{path}: page {frame} is {tiff.height}x{tiff.width}, but the image {rows}x{columns}; "
            "a lesion mask has the matrix of its image"
        )
    if tiff.mode not in ("L", "P"):
        raise DataError(f"{path}: page {frame} is {tiff.mode}; a lesion mask has 8 bits a pixel")
