"""Reads a lesion mask: a multi-page TIFF, page n for frame n, lesion numbers from 1, 0 for none.

In: the bytes of the TIFF and the matrix that the image file has. Out: one uint8 mask a frame.
"""

import io

import numpy as np
from PIL import Image

from tfds_builder.errors import DataError


def read_masks(
    content: bytes, frames: tuple[int, ...], pages: int, rows: int, columns: int
) -> list[np.ndarray]:
    """Reads the pages that belong to some frames.

    Args:
      content: a TIFF with one 8-bit page a frame.
      frames: the frame numbers wanted, from 1.
      pages: how many frames the image file has.
      rows, columns: its matrix.

    Returns:
      uint8 (rows, columns) for each of `frames`.

    Raises:
      DataError: unreadable, not 8 bits a pixel, or not of the image's pages and matrix.
    """
    masks = []
    try:
        with Image.open(io.BytesIO(content), formats=("TIFF",)) as tiff:
            if tiff.n_frames != pages:
                raise DataError(
                    f"lesion mask has {tiff.n_frames} pages, but its image {pages} frames"
                )
            for frame in frames:
                tiff.seek(frame - 1)
                _check_page(tiff, frame, rows, columns)
                masks.append(np.array(tiff, np.uint8))
    except DataError:
        raise
    except Exception as error:  # Pillow raises nearly anything on malformed files.
        raise DataError(f"lesion mask is not a readable TIFF ({type(error).__name__})") from error
    return masks


def _check_page(tiff: Image.Image, frame: int, rows: int, columns: int) -> None:
    if tiff.size != (columns, rows):
        raise DataError(
            f"lesion mask has {tiff.height}x{tiff.width} pixels on page {frame}, but the image "
            f"{rows}x{columns}; a lesion mask has the matrix of its image"
        )
    if tiff.mode not in ("L", "P"):
        raise DataError(
            f"lesion mask has mode {tiff.mode} on page {frame}; 8 bits a pixel are read"
        )
