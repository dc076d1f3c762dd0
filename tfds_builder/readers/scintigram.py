"""What an image file holds, whatever its format: its views as counts, and the facts for the record.

Readers (`dicom`, `raster`) make these from the bytes of a file; nothing here knows a format.
"""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from tfds_builder.commandline.errors import UserError

MAX_PIXELS = 2**24
GREY_VALUES = "grey values of a picture, not counts"
TAKEN = "taken by the manifest's 'accept'"


@dataclass(frozen=True)
class FrameView:
    """One frame that is a view.

    Attributes:
      frame: DICOM frame or TIFF page, from 1.
      name: 'anterior', 'posterior' or 'unknown'.
      rule: what decided the name, for example 'coded view'.
      notes: what was assumed or changed, in fixed words: nothing of the patient, no text of a file.
      findings: what is odd about it and needs a look, in fixed words too.
    """

    frame: int
    name: str
    rule: str
    notes: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class View(FrameView):
    """One view: whole, non-negative counts (rows, columns) as its file has them, of any type."""

    native: np.ndarray


@dataclass(frozen=True)
class Scintigram:
    """One file.

    Attributes:
      views: the views asked for, in frame order.
      frames: frames in the file, views or not.
      pixel_spacing_mm: native row spacing; NaN where the file does not say.
      counts_ratio: sum of all pixels over DICOM's CountsAccumulated; NaN where there is none, or
        where the compression lost counts anyway.
      patient_id: PatientID, to compare with the manifest; it must not reach the records.
      manufacturer: as written, or None.
      sex: 'F', 'M', 'O' or None.
      age: whole years or None.
    """

    views: tuple[View, ...]
    frames: int
    pixel_spacing_mm: float = float("nan")
    counts_ratio: float = float("nan")
    patient_id: str = ""
    manufacturer: str | None = None
    sex: str | None = None
    age: int | None = None


def accepted(reason: str, accept: bool) -> tuple[str, ...]:
    """What becomes of a file that a rule of thumb is against: a person may know better.

    Where the manifest's column 'accept' takes it, the finding that says so; else a UserError with
    the reason and the way out.
    """
    if not accept:
        raise UserError(f"{reason}; 'yes' in the manifest's 'accept' takes it all the same")
    return (f"{TAKEN}, although it {reason}",)


@contextmanager
def own_words(kind: str) -> Iterator[None]:
    """Makes every failure a UserError without a word of the file, which may name the patient.

    pydicom and Pillow raise nearly anything on what is damaged. `kind` is 'PNG' or the like. A
    MemoryError passes as it came: what follows it is for the worker pool.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (UserError, MemoryError):
        raise
    except (struct.error, zlib.error):
        raise UserError(f"damaged {kind} (its structure)") from None
    except Exception as error:
        raise UserError(f"damaged {kind} ({type(error).__name__})") from None
