"""Reads a PNG, TIFF or JPEG as one view: the grey values of a picture stand in for counts.

In: the content of a file, and what the manifest says of it. Out: a `Scintigram` of one view, larger
values for more counts, with what was assumed. No text, date or profile of the file is looked at.
"""

import io

import numpy as np
from PIL import Image

from tfds_builder.commandline.errors import UserError
from tfds_builder.readers.raster.container import COLOUR, Container, check_frame
from tfds_builder.readers.raster.directory import TIFF_STARTS
from tfds_builder.readers.raster.jpeg import JPEG_START, cut_jpeg
from tfds_builder.readers.raster.png import PNG_START, cut_png
from tfds_builder.readers.raster.tiff import cut_tiff
from tfds_builder.readers.scintigram import GREY_VALUES, Scintigram, View, own_words
from tfds_builder.readers.views import MANIFEST, NO_VIEW, UNKNOWN

_STARTS = {PNG_START: "PNG", JPEG_START: "JPEG", **dict.fromkeys(TIFF_STARTS, "TIFF")}
_HIGHEST = np.iinfo(np.uint16).max
_OPAQUE = 255
# A scan is mostly empty: where so much of it lies in the upper quarter, white stands for nothing.
_WHITE_SHARE, _WHITE_LEVEL = 0.5, 0.75

Grey = tuple[np.ndarray, tuple[str, ...]]


def is_raster(content: bytes) -> bool:
    """Whether this is a PNG, TIFF or JPEG by its first bytes."""
    return content.startswith(tuple(_STARTS))


def check_raster(content: bytes, frame: int = 1) -> int:
    """Checks all but the pixels of a page; returns how many there are. Raises as `read_raster`."""
    kind = _kind_of(content)
    with own_words(kind):
        return _cut(kind, content, frame).pages


def read_raster(content: bytes, frame: int | None = None, view: str | None = None) -> Scintigram:
    """Decodes a picture to one view of uint8 or uint16 grey values.

    The pixel spacing is unknown: what such files say of dots per inch is the printer's. The
    arguments are those of `image_file.decode`; `frame` is needed where there are several pages.

    Raises:
      UserError: says why it cannot be used, in words and numbers of our own.
      MemoryError: this process has too little memory left. That is no fault of the picture, whose
        size is bounded: a worker pool tries again in a new process.
    """
    kind = _kind_of(content)
    with own_words(kind):
        container = _cut(kind, content, frame)
        native, notes = _upright_grey(kind, container)
    name, rule, view_notes = (view, MANIFEST, ()) if view else (UNKNOWN, "none", (NO_VIEW,))
    notes = (*view_notes, GREY_VALUES, *notes, "pixel spacing unknown")
    only = View(frame or 1, name, rule, notes, native=native)
    return Scintigram(views=(only,), frames=container.pages)


def _kind_of(content: bytes) -> str:
    """'PNG', 'TIFF' or 'JPEG' by the first bytes."""
    for start, kind in _STARTS.items():
        if content.startswith(start):
            return kind
    raise UserError("is not a PNG, TIFF or JPEG")


def _cut(kind: str, content: bytes, frame: int | None) -> Container:
    if kind == "TIFF":
        return cut_tiff(content, frame)
    check_frame(frame, 1)
    return cut_png(content) if kind == "PNG" else cut_jpeg(content)


def _upright_grey(kind: str, container: Container) -> Grey:
    """Grey values in which more counts are larger."""
    picture = decoded(kind, container.content, container)
    if container.twin is not None:
        twin = decoded(kind, container.twin, container)
        if not np.array_equal(np.asarray(picture), np.asarray(twin)):
            raise UserError(f"damaged {kind} (truncated)")
    grey, notes = _grey(picture)
    if kind == "JPEG":
        notes = ("compressed with loss: counts are approximate", *notes)
    if container.signed and grey.dtype == np.uint16:
        grey = grey.view(np.int16)
    if grey.dtype not in (np.uint8, np.uint16):
        grey, notes = _narrowed(grey, notes)
    if container.white_is_zero:
        grey, notes = grey.max() - grey, (*notes, "WhiteIsZero inverted")
    if _is_dark_on_white(grey):
        grey, notes = grey.max() - grey, (*notes, "dark on white: inverted")
    return grey, notes


def decoded(kind: str, content: bytes, container: Container) -> Image.Image:
    """Decodes the content or the twin of a container; raises nearly anything on a damaged one."""
    with Image.open(io.BytesIO(content), formats=(kind,)) as image:
        if image.size != (container.columns, container.rows):
            raise UserError(f"damaged {kind} (two sizes)")
        image.load()
        return image


def _grey(image: Image.Image) -> Grey:
    """One channel (rows, columns), of any type, and notes."""
    if image.mode == "P":
        return _of_palette(image)
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False), ()
    if image.mode not in ("LA", "RGB", "RGBA"):
        raise UserError(COLOUR)
    notes = ()
    if image.mode != "RGB":
        if pixels[..., -1].min() < _OPAQUE:
            raise UserError("has transparent pixels; export it without transparency")
        pixels, notes = pixels[..., :-1], ("opaque: transparency dropped",)
    if (pixels != pixels[..., :1]).any():
        raise UserError(COLOUR)
    if pixels.shape[-1] > 1:
        notes += ("colour channels are equal: read as grey",)
    return np.ascontiguousarray(pixels[..., 0]), notes


def _of_palette(image: Image.Image) -> Grey:
    table = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    numbers = np.asarray(image)
    used = np.unique(numbers)
    if used[-1] >= len(table):
        raise UserError("has pixels beyond its palette")
    if (table[used] != table[used, :1]).any():
        raise UserError(COLOUR)
    return table[numbers, 0], ("grey palette: its grey values are read",)


def _narrowed(wide: np.ndarray, notes: tuple[str, ...]) -> Grey:
    """Values of any other type as uint16, where that loses nothing."""
    if not ((wide >= 0) & (wide <= _HIGHEST)).all():
        raise UserError(f"has values outside 0 to {_HIGHEST}; only whole numbers in it are read")
    narrow = wide.astype(np.uint16)
    if wide.dtype.kind == "f":
        if (narrow != wide).any():
            raise UserError(f"has broken values; whole numbers from 0 to {_HIGHEST} are read")
        notes = (*notes, "floating point values, all whole")
    return narrow, notes


def _is_dark_on_white(grey: np.ndarray) -> bool:
    lowest, highest = int(grey.min()), int(grey.max())
    level = lowest + _WHITE_LEVEL * (highest - lowest)
    return highest > lowest and bool((grey >= level).mean() > _WHITE_SHARE)
