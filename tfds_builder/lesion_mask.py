"""Reads a lesion mask: a multi-page TIFF, page n for frame n, lesion numbers from 1, 0 for none.

In: the TIFF's path and the matrix that the image file has. Out: one uint8 mask a frame.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from tfds_builder.errors import DataError


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
    try:
        with Image.open(path, formats=("TIFF",)) as tiff:
            if tiff.n_frames != pages:
                raise DataError(
                    f"{path}: lesion mask has {tiff.n_frames} pages, but its image {pages} frames"
                )
            return [_page(path, tiff, frame, rows, columns) for frame in frames]
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: cannot be read as a TIFF lesion mask ({error})") from None


def _page(path: Path, tiff: Image.Image, frame: int, rows: int, columns: int) -> np.ndarray:
    tiff.seek(frame - 1)
    if tiff.size != (columns, rows):
        raise DataError(
            f"{path}: page {frame} is {tiff.height}x{tiff.width}, but the image {rows}x{columns}; "
            "a lesion mask has the matrix of its image"
        )
    if tiff.mode not in ("L", "P"):
        raise DataError(f"{path}: page {frame} is {tiff.mode}; a lesion mask has 8 bits a pixel")
    return np.asarray(tiff, np.uint8)
