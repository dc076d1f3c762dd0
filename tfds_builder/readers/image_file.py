"""One image file on disk, of any format that is read -> a `Scintigram`.

In: a path, and what the manifest says of the file. Out: its bytes, and what they hold. The format
is told by content; a name is never looked at.
"""

from pathlib import Path

from tfds_builder.commandline.errors import UserError
from tfds_builder.readers.dicom import read_dicom
from tfds_builder.readers.raster import is_raster, read_raster
from tfds_builder.readers.scintigram import Scintigram

# Four times what the largest matrix holds as 16-bit pixels.
_MOST_BYTES = 128 * 2**20


def read_bytes(path: Path) -> bytes:
    """The content of an image file.

    Raises UserError where it is empty, far too large, not a plain file, or cannot be read.
    """
    try:
        if not path.is_file():
            raise UserError(
                "is not there, or not a plain file (paths are relative to the manifest's folder, "
                "with / between folders)"
            )
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise UserError(f"is {size / 2**20:.0f} MiB large, more than any bone scan")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})") from None
    if not content:
        raise UserError("the file is empty")
    return content


def is_dicom(content: bytes) -> bool:
    """Whether a file is to be read as DICOM, which may wear another format in its preamble."""
    return content[128:132] == b"DICM" or not is_raster(content)


def decode(
    content: bytes, frame: int | None = None, view: str | None = None, accept: bool = False
) -> Scintigram:
    """Decodes an image file.

    Args:
      content: its bytes: DICOM, PNG, TIFF or JPEG.
      frame: the manifest's frame number, or None for every view.
      view: the manifest's view, or None.
      accept: whether the manifest takes it although a rule of thumb is against it.

    Raises:
      UserError: says why it cannot be used, without a word of what the file says of the patient.
    """
    if is_dicom(content):
        return read_dicom(content, frame, view, accept)
    return read_raster(content, frame, view)
