"""The headers of DICOM files, from which results that are filed with their study are made.

In: a file, which may be anything: this runs in a worker. Out: its header, with what every object
has of patient and study, in Unicode; or why there is none, in fixed words.
"""

import io
from pathlib import Path

import pydicom
from pydicom.uid import NuclearMedicineImageStorage

from tfds_builder.commandline.errors import UserError
from tfds_builder.readers.image_file import is_dicom, read_bytes

UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")

EMPTY_WHERE_UNKNOWN = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
"""What every object has of patient and study (type 2 of PS3.3)."""

UNICODE = "ISO_IR 192"
"""SpecificCharacterSet of all that is made here: names of classes may be in any script."""


def source_of(path: Path) -> pydicom.Dataset | None:
    """The header of a DICOM file; None of another file.

    Raises:
      UserError: the file cannot be read, has no UID to be referenced by, or a damaged header.
    """
    content = read_bytes(path)
    if not is_dicom(content):
        return None
    try:
        header = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True, force=True)
        header.remove_private_tags()
        header.decode()
    # pydicom raises nearly anything, and its words may quote the header.
    except Exception as error:
        raise UserError(f"has a damaged header ({type(error).__name__})") from None
    for name in UIDS:
        if not header.get(name):
            raise UserError(f"has no {name}")
    header.SpecificCharacterSet = UNICODE
    blank = dict.fromkeys(EMPTY_WHERE_UNKNOWN, "")
    for name, value in {**blank, "SOPClassUID": NuclearMedicineImageStorage}.items():
        if name not in header:
            setattr(header, name, value)
    return header
