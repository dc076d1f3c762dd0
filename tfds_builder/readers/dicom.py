"""Reads one nuclear medicine DICOM file: its views as counts, and the facts that the record needs.

In: the bytes of a file, and what the manifest says of it. Out: a `Scintigram`, or a UserError that
says why there is none, in fixed words: no value of the header is repeated, since it may be a name.
"""

import io
import re
import zlib
from dataclasses import dataclass

import pydicom
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from tfds_builder.classes import means_unknown
from tfds_builder.commandline.errors import UserError
from tfds_builder.manifest import MAX_AGE
from tfds_builder.readers.codestream import inflated
from tfds_builder.readers.dicom_pixels import decode_counts, held_frames, require_decoder
from tfds_builder.readers.elements import numbers
from tfds_builder.readers.scintigram import (
    GREY_VALUES,
    MAX_PIXELS,
    FrameView,
    Scintigram,
    View,
    accepted,
    own_words,
)
from tfds_builder.readers.views import GE_ELEMENTS, GE_GROUP, resolve_views

_NM_CLASSES = ("1.2.840.10008.5.1.4.1.1.20", "1.2.840.10008.5.1.4.1.1.5")
# Secondary Capture and its multi-frame byte and word forms.
_CAPTURE_CLASSES = tuple(f"1.2.840.10008.5.1.4.1.1.7{suffix}" for suffix in ("", ".2", ".3"))
_PLANAR_TYPES = ("STATIC", "WHOLE BODY")
_PHOTOMETRIC = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
_OTHER_TYPES = (
    "TOMO",
    "RECON TOMO",
    "DYNAMIC",
    "GATED",
    "GATED TOMO",
    "RECON GATED TOMO",
    "REPROJECTION",
    "GATED REPROJECTION",
)
_MODALITIES = (
    "CR", "CT", "DX", "ECG", "ES", "KO", "MG", "MR", "OT", "PR", "PT", "PX", "RF", "RTDOSE",
    "RTIMAGE", "RTPLAN", "RTSTRUCT", "SC", "SEG", "SM", "SR", "US", "XA", "XC",
)  # fmt: skip
_TECHNETIUM = re.compile(r"techneti|99m|tc", re.I)
_SOURCE_TESTS = re.compile(
    r"(?:\b|_)(?:flood|bar|uniformity|linearity|qc|quality control|cor|co-?57)(?:\b|_)", re.I
)
_DESCRIPTIONS = (
    "StudyDescription",
    "SeriesDescription",
    "AcquisitionProtocolDescription",
    "ProtocolName",
    "ImageID",
)
SOURCE_WORDS = "described in words that tests of the camera have (flood, bars, QC, Co-57)"
ODD_UID = "a UID that is ill-formed or has more than 64 characters"
FRAMES_COUNTED = "NumberOfFrames is missing: frames counted in the pixels"
FRAMES_DISAGREE = "NumberOfFrames disagrees with the pixels: frames counted in the pixels"

_UIDS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
# Anonymisers put letters into UIDs.
_USUAL_UID = re.compile(r"(?:[\w-]+(?:\.[\w-]+)*)?", re.ASCII)
_LONGEST_UID = 64
# A scan of a body lying along the rows; floods and spot views are about square.
_LEAST_ELONGATION = 1.5
# Two views in each of six energy windows.
_MOST_FRAMES = 12
_MOST_HEADER_BYTES = 16 * 2**20
# pydicom takes 15 microseconds for an item of eight bytes, so that few bytes could take minutes.
_MOST_READS = 20_000
# What is decoded of a header; private data and pixels are not.
_MOST_DECODED_BYTES = 2**18
# It is decoded while the file is read, and slowly: the tag in either byte order.
_CHARACTER_SET_TAGS = (b"\x08\0\x05\0", b"\0\x08\0\x05")
_MOST_CHARACTER_SET_BYTES = 1024
_FIRST_GROUP_OF_PIXELS = 0x5000
# The colours of a palette; stored values are what is read.
_PALETTE = (0x00281201, 0x00281202, 0x00281203)
# What anonymisers write for everybody; with a number it may be one of their pseudonyms.
_ANONYMISED = re.compile(r"anon\D*", re.I)
_LARGE_HEADER = "has a header far larger than a bone scan's"
_DEFLATED, _AS_LONG = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"


@dataclass(frozen=True)
class Header:
    """What a file says before its pixels are decoded.

    Attributes:
      views: its views in frame order.
      frames: number of frames in the file.
      rows, columns: its matrix.
      findings: what is odd about the file as a whole, in fixed words.
      patient_id: PatientID, empty where it names nobody; it must not reach the records.
      study, instance: StudyInstanceUID and SOPInstanceUID; they must not reach the records.
      manufacturer, sex, age: as in `Scintigram`.
    """

    views: tuple[FrameView, ...]
    frames: int
    rows: int
    columns: int
    findings: tuple[str, ...]
    patient_id: str
    study: str
    instance: str
    manufacturer: str | None
    sex: str | None
    age: int | None


def read_header(content: bytes, accept: bool = False) -> Header:
    """Reads and checks all but the pixels, of the content of a file; `accept` as for `accepted`.

    Raises:
      UserError: not a DICOM file, or not a planar nuclear medicine image that can be used.
    """
    # pydicom's check of every value takes a fifth of a header's time.
    with own_words("DICOM file"), disable_value_validation():
        dataset = _read(content, pixels=False)
        if not dataset.get("NumberOfFrames"):
            dataset = _read(content, pixels=True)
        return _checked_header(dataset, None, None, accept)


def read_dicom(
    content: bytes, frame: int | None = None, view: str | None = None, accept: bool = False
) -> Scintigram:
    """Decodes the views of a file; the arguments are those of `image_file.decode`.

    Raises:
      UserError: as `read_header`, and where the pixels cannot be decoded or are not counts.
    """
    with own_words("DICOM file"), disable_value_validation():
        dataset = _read(content, pixels=True)
        header = _checked_header(dataset, frame, view, accept)
        dataset.NumberOfFrames = header.frames
        dataset.PhotometricInterpretation = _photometric(dataset)
        expected = header.frames, header.rows, header.columns
        stored, ratio, notes, findings = decode_counts(dataset, expected)
        findings += header.findings
        # What a workstation shows of a scan may be counts still, if they add up to what it says.
        if _sop_class(dataset) not in _NM_CLASSES and ratio != 1:
            notes += (GREY_VALUES,)
        spacing, spacing_notes = _pixel_spacing(dataset)
        notes += spacing_notes + _radionuclide_notes(dataset)
        return Scintigram(
            views=tuple(
                View(
                    one.frame,
                    one.name,
                    one.rule,
                    one.notes + notes,
                    one.findings + findings,
                    native=stored[one.frame - 1],
                )
                for one in header.views
            ),
            frames=header.frames,
            pixel_spacing_mm=spacing,
            counts_ratio=ratio,
            patient_id=header.patient_id,
            manufacturer=header.manufacturer,
            sex=header.sex,
            age=header.age,
        )


class _Bounded(io.BytesIO):
    """The content of a file; it ends where there is more to decode than a bone scan has.

    Raising would not do: pydicom makes another error of it.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._reads = 0
        self._at_character_set = False
        self.exceeded = False

    def read(self, size: int | None = -1) -> bytes:
        """Nothing, once the bounds are exceeded."""
        found = super().read(size)
        if size == 8:  # The head of an element.
            self._at_character_set = found[:4] in _CHARACTER_SET_TAGS
        elif self._at_character_set and len(found) > _MOST_CHARACTER_SET_BYTES:
            self.exceeded = True
        self._reads += 1
        self.exceeded |= self._reads > _MOST_READS
        return b"" if self.exceeded else found


def _read(content: bytes, pixels: bool) -> Dataset:
    has_preamble = content[128:132] == b"DICM"
    try:
        content = _without_deflation(content, 132 if has_preamble else 0)
    except zlib.error:
        raise UserError("its deflated data is damaged or ends too early") from None
    # A data set without the file header begins with a group length or identifying element.
    bare = not has_preamble and content[:2] in (b"\x08\x00", b"\x02\x00", b"\x00\x08")
    file = _Bounded(content)
    try:
        dataset = pydicom.dcmread(file, stop_before_pixels=not pixels, force=bare)
    except InvalidDicomError:
        raise UserError("not a DICOM file") from None
    finally:
        if file.exceeded:
            raise UserError(_LARGE_HEADER)
    # Where compressed pixels have no end, pydicom keeps nothing of a data set.
    if not dataset:
        raise UserError("ends too early: the file is truncated")
    _check_header_size(dataset)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _check_header_size(dataset: Dataset) -> None:
    """Refuses what would take long to decode, without decoding any of it."""
    size = 0
    for element in dataset.values():
        tag = element.tag
        if tag.is_private:
            names_views = tag.group == GE_GROUP and tag.element & 0xFF in GE_ELEMENTS
            decoded = tag.is_private_creator or names_views
        else:
            decoded = tag.group < _FIRST_GROUP_OF_PIXELS and tag not in _PALETTE
        if decoded and isinstance(element.value, bytes):
            size += len(element.value)
    if size > _MOST_DECODED_BYTES:
        raise UserError(_LARGE_HEADER)


def _without_deflation(content: bytes, header: int) -> bytes:
    """Deflated data grows a thousandfold, and pydicom would inflate it whole."""
    syntax, start = _transfer_syntax(content, header)
    if syntax != DeflatedExplicitVRLittleEndian:
        return content
    dataset = inflated(content[start:], 2 * MAX_PIXELS + _MOST_HEADER_BYTES)
    if dataset is None:
        raise UserError("is deflated and inflates to more than any bone scan holds")
    return content[:start].replace(_DEFLATED, _AS_LONG) + dataset


def _transfer_syntax(content: bytes, at: int) -> tuple[str, int]:
    """The transfer syntax, and where the file header (group 2, explicit little endian) ends.

    It begins at `at`.
    """
    syntax = ""
    while content[at : at + 2] == b"\x02\x00":
        long = content[at + 4 : at + 6].decode("ascii", "replace") in EXPLICIT_VR_LENGTH_32
        length = int.from_bytes(
            content[at + 8 : at + 12] if long else content[at + 6 : at + 8], "little"
        )
        value = at + (12 if long else 8)
        if content[at + 2 : at + 4] == b"\x10\x00":
            syntax = content[value : value + length].strip(b"\0 ").decode("ascii", "replace")
        at = value + length
    return syntax, at


def _checked_header(dataset: Dataset, frame: int | None, view: str | None, accept: bool) -> Header:
    findings = _uid_findings(dataset)
    findings += _kind_findings(dataset, accept) + _complete_pixel_kind(dataset)
    require_decoder(dataset)
    (frames, rows, columns), matrix_findings = _matrix(dataset, frame)
    findings += matrix_findings + _subject_findings(dataset, frames, rows, columns, accept)
    return Header(
        views=resolve_views(dataset, frame, view, frames),
        frames=frames,
        rows=rows,
        columns=columns,
        findings=findings,
        patient_id=_patient_id(dataset),
        study=str(dataset.get("StudyInstanceUID") or ""),
        instance=str(dataset.get("SOPInstanceUID") or ""),
        manufacturer=str(dataset.get("Manufacturer") or "") or None,
        sex=_sex(dataset),
        age=_age(dataset),
    )


def _patient_id(dataset: Dataset) -> str:
    written = str(dataset.get("PatientID") or "")
    nobody = means_unknown(written) or _ANONYMISED.fullmatch(written.strip())
    return "" if nobody else written


def _uid_findings(dataset: Dataset) -> tuple[str, ...]:
    uids = [str(dataset.get(keyword) or "") for keyword in _UIDS]
    usual = all(_USUAL_UID.fullmatch(uid) and len(uid) <= _LONGEST_UID for uid in uids)
    return () if usual else (ODD_UID,)


def _spelt(value: object) -> str:
    """A defined term without the ways in which it is misspelt: 'Whole_Body' is 'WHOLEBODY'."""
    return re.sub(r"[\W_]", "", str(value)).upper()


def _kind_findings(dataset: Dataset, accept: bool) -> tuple[str, ...]:
    if str(dataset.get("SOPClassUID") or "") not in _NM_CLASSES:
        _check_capture(dataset)
    kind = dataset.get("ImageType") or []
    values = [_spelt(one) for one in ([kind] if isinstance(kind, str) else kind)]
    if "TRANSMISSION" in values:
        raise UserError("is a transmission image (ImageType), not of a patient's uptake")
    third = values[2] if len(values) > 2 else ""
    for other in _OTHER_TYPES:
        if third == _spelt(other):
            raise UserError(f"is a {other} acquisition (ImageType), not a planar whole-body image")
    if third and third not in map(_spelt, _PLANAR_TYPES):
        return accepted("is a special acquisition (ImageType), not a planar one", accept)
    return ()


def _check_capture(dataset: Dataset) -> None:
    """Secondary Capture, or an object of no class, may be nuclear medicine by its Modality."""
    sop_class = _sop_class(dataset)
    if sop_class and sop_class not in _CAPTURE_CLASSES + _NM_CLASSES:
        name = sop_class.name if _has_name(sop_class) else "an object of a private class"
        raise UserError(f"is no nuclear medicine image but {name}")
    modality = _spelt(dataset.get("Modality") or "")
    if modality != "NM":
        # Letters that are no modality may be a patient's.
        known = f"Modality {modality}, not NM" if modality in _MODALITIES else "unknown Modality"
        raise UserError(
            f"has {known if modality else 'no Modality'}; only nuclear medicine is read"
        )


def _sop_class(dataset: Dataset) -> UID:
    """What the object is by itself or, failing that, by the file's header: a DICOMDIR's way."""
    own = dataset.get("SOPClassUID")
    said = UID(str(own or dataset.file_meta.get("MediaStorageSOPClassUID") or ""))
    return said if own or _has_name(said) else UID("")


def _has_name(uid: UID) -> bool:
    return uid.name != uid


def _subject_findings(
    dataset: Dataset, frames: int, rows: int, columns: int, accept: bool
) -> tuple[str, ...]:
    """Refuses what is planar nuclear medicine but not of a whole body."""
    if _spelt(dataset.get("BurnedInAnnotation") or "") in ("YES", "Y"):
        raise UserError(
            "has text in its pixels (BurnedInAnnotation), which may name the patient; "
            "export it without annotations"
        )
    descriptions = [dataset.get(field) for field in _DESCRIPTIONS]
    is_described = _SOURCE_TESTS.search(" | ".join(str(text) for text in descriptions if text))
    findings = (SOURCE_WORDS,) if is_described else ()
    if frames > _MOST_FRAMES:
        what = f"has {frames} frames of {rows}x{columns}: a tomogram or another series"
        findings += accepted(f"{what}, not a whole body", accept)
    if rows < _LEAST_ELONGATION * columns:
        what = f"has a matrix of {rows}x{columns}: a spot view or a test, not a whole body"
        findings += accepted(what, accept)
    return findings


def _matrix(dataset: Dataset, frame: int | None) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    """Frames, rows and columns, bounded before anything of that size is allocated, and findings."""
    if "Rows" not in dataset and "Columns" not in dataset:
        raise UserError("has neither Rows nor Columns; the file may be truncated")
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    said = int(dataset.get("NumberOfFrames") or 0)
    if min(rows, columns, said or 1) < 1:
        raise UserError(f"holds no image (Rows {rows}, Columns {columns}, frames {said})")
    _check_pixel_kind(dataset)
    frames, findings = _frames(dataset, said, rows * columns, frame)
    if rows * columns * frames > MAX_PIXELS:
        raise UserError(f"claims {rows}x{columns}x{frames} pixels, more than {MAX_PIXELS}")
    return (frames, rows, columns), findings


def _frames(
    dataset: Dataset, said: int, pixels: int, frame: int | None
) -> tuple[int, tuple[str, ...]]:
    """How many frames there are: what the header says may be missing, or be of another file."""
    held = held_frames(dataset, pixels)
    if not said:
        return max(held, 1), (FRAMES_COUNTED,) if held > 1 else ()
    if held <= said:
        return said, ()  # Where it holds fewer, decoding says so.
    if frame is None:
        raise UserError(
            f"has {said} frames by NumberOfFrames, but its pixels are {held} frames; "
            "say in the manifest's 'frame' and 'view' which one is which view"
        )
    return held, (FRAMES_DISAGREE,)


def _photometric(dataset: Dataset) -> str | None:
    """How the pixels are shown, as the standard spells it; None for colours without a palette."""
    said = _spelt(dataset.get("PhotometricInterpretation") or "MONOCHROME2")
    return next((name for name in _PHOTOMETRIC if _spelt(name) == said), None)


def _check_pixel_kind(dataset: Dataset) -> None:
    if dataset.SamplesPerPixel != 1:
        raise UserError("is a colour image (a screen capture?); counts are needed")
    photometric = _photometric(dataset)
    # Only nuclear medicine has a palette to show counts with; elsewhere it is the picture's.
    is_shown = photometric == "PALETTE COLOR" and _sop_class(dataset) not in _NM_CLASSES
    if photometric is None or is_shown:
        raise UserError("is a colour image (PhotometricInterpretation); MONOCHROME2 is needed")
    if dataset.BitsAllocated not in (8, 16):
        raise UserError(f"has {dataset.BitsAllocated} bits a pixel; 8 or 16 are read")


def _complete_pixel_kind(dataset: Dataset) -> tuple[str, ...]:
    """Fills in what is asked of pixels, and a file may lack; a finding where it was guessed."""
    allocated = int(dataset.get("BitsAllocated") or 16)
    stored = int(dataset.get("BitsStored") or allocated)
    usual = {
        "SamplesPerPixel": 1,
        "BitsAllocated": allocated,
        "BitsStored": stored,
        "HighBit": stored - 1,
        "PixelRepresentation": 0,
    }
    missing = [keyword for keyword in usual if dataset.get(keyword) in (None, "")]
    for keyword in missing:
        setattr(dataset, keyword, usual[keyword])
    return (f"{', '.join(missing)} missing: usual values assumed",) if missing else ()


def _radionuclide_notes(dataset: Dataset) -> tuple[str, ...]:
    for item in dataset.get("RadiopharmaceuticalInformationSequence") or []:
        for code in item.get("RadionuclideCodeSequence") or []:
            name = str(code.get("CodeMeaning") or "")
            if name and not _TECHNETIUM.search(name):
                return ("radionuclide is not technetium-99m",)
    return ()


def _pixel_spacing(dataset: Dataset) -> tuple[float, tuple[str, ...]]:
    spacing = numbers(dataset, "PixelSpacing")
    if len(spacing) != 2 or min(spacing) <= 0:
        return float("nan"), ("pixel spacing unknown",)
    if abs(spacing[0] - spacing[1]) > 0.01 * spacing[0]:
        return spacing[0], ("pixels are not square: row spacing recorded",)
    return spacing[0], ()


def _sex(dataset: Dataset) -> str | None:
    value = _spelt(dataset.get("PatientSex") or "")
    names = {"FEMALE": "F", "MALE": "M", "OTHER": "O"}
    return names.get(value, value if value in names.values() else None)


def _age(dataset: Dataset) -> int | None:
    """Years from PatientAge ('065Y', '011M'), else from birth to study."""
    match = re.fullmatch(r"(\d{1,3})([YMWD])", str(dataset.get("PatientAge") or "").strip())
    if match:
        years = int(match[1]) // {"Y": 1, "M": 12, "W": 52, "D": 365}[match[2]]
        return years if years <= MAX_AGE else None
    born, studied = (str(dataset.get(k) or "") for k in ("PatientBirthDate", "StudyDate"))
    if not all(re.fullmatch(r"\d{8}", date, re.ASCII) for date in (born, studied)):
        return None
    years = (int(studied) - int(born)) // 10_000
    return years if 0 <= years <= MAX_AGE else None
