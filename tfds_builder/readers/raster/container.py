"""One picture of a file, still encoded, and what is checked of it whatever its format.

In: what a PNG, TIFF or JPEG says of its matrix and pages. Out: a `Container`, or a reason against
it, found before anything of that size is allocated. Decoders guard their memory well, but not their
time, and none of them says that a picture stops short.

What makes containers, `cut_png`, `cut_tiff` and `cut_jpeg`, raises UserError for a picture that
cannot be used or is damaged, and nearly any exception where damage leads nowhere.
"""

from dataclasses import dataclass

from tfds_builder.commandline.errors import UserError
from tfds_builder.readers.scintigram import MAX_PIXELS

MIN_SIDE = 16
COLOUR = "is a colour image (a screen capture?); export it as grey values"
DEEP_COLOUR = (
    "has 16 bits a channel beside colour or transparency, of which 8 would be lost; "
    "export it as 16-bit grey values"
)
# More than any picture has, and few enough to walk in no time.
MOST_PARTS = 2**16


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


def check_frame(frame: int | None, pages: int) -> None:
    """Refuses a page number, from 1, that is not there; None will do where there is one page."""
    if frame is None and pages > 1:
        raise UserError(f"has {pages} pages; add a row with 'frame' for each view")
    if frame is not None and not 1 <= frame <= pages:
        raise UserError(f"frame {frame} is asked for, but the file has {pages}; mend the manifest")


def check_size(rows: int, columns: int) -> None:
    """Refuses a matrix that is too small, too large or wider than high to be one view."""
    if columns > rows:
        raise UserError(
            f"is {columns}x{rows}, wider than high: both views side by side, or lying on its side? "
            "crop or turn it"
        )
    if columns < MIN_SIDE:
        raise UserError(f"is {columns}x{rows}; a view has at least {MIN_SIDE}x{MIN_SIDE} pixels")
    if rows * columns > MAX_PIXELS:
        raise UserError(f"claims {columns}x{rows} pixels, more than {MAX_PIXELS}")


def check_orientation(orientation: int) -> None:
    """Refuses any other than 1.

    Cameras write no such tag; whoever did has turned the scan, or its left for its right. Nothing
    tells whether the pixels were turned too, so neither obeying nor ignoring it is safe.
    """
    if 2 <= orientation <= 8:
        raise UserError(
            f"carries the orientation tag {orientation}: shown turned or mirrored; "
            "save it as it is to be read, without that tag"
        )


def bits_refused(bits: int, read: str = "8 or 16") -> UserError:
    """The error for so many bits a pixel."""
    return UserError(f"has {bits} bit{'s' if bits > 1 else ''} a pixel; {read} are read")


def damaged(kind: str, what: str) -> UserError:
    """The error for what is no whole 'PNG', 'TIFF' or 'JPEG'."""
    return UserError(f"damaged {kind} ({what})")
