"""Reads one nuclear medicine DICOM file: its views as counts, and the facts that the record needs.

In: a path, and what the manifest says of it. Out: views of 1024x256 counts, with what was read and
what was assumed. Whatever is wrong with a file is a DataError that names it.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from tfds_builder.errors import DataError
from tfds_builder.manifest import MAX_AGE
from tfds_builder.matrix import Fit, fit_of
from tfds_builder.views import FrameView, resolve_views

MAX_PIXELS = 64 * 2**20

_NM_CLASSES = ("1.2.840.10008.5.1.4.1.1.20", "1.2.840.10008.5.1.4.1.1.5")
# Secondary Capture and its multi-frame byte and word forms.
_CAPTURE_CLASSES = tuple(f"1.2.840.10008.5.1.4.1.1.7{suffix}" for suffix in ("", ".2", ".3"))
_PLANAR_TYPES = ("STATIC", "WHOLE BODY")
_LOSSY_SYNTAXES = (
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.203",
)
_TECHNETIUM = re.compile(r"techneti|99m|tc", re.I)
_DECODER_PACKAGES = (
    (r"\.4\.(80|81)$", "pyjpegls"),
    (r"\.4\.(90|91|201|202|203)$", "pylibjpeg-openjpeg"),
    (r"\.4\.(50|51|57|70)$", "python-gdcm (or pylibjpeg-libjpeg, GPL)"),
    (r"\.5$", "pylibjpeg-rle"),
)


@dataclass(frozen=True)
class Header:
    """What a file says before its pixels are decoded.

    Attributes:
      views: its views in frame order.
      frames: number of frames in the file.
      fit: how its matrix becomes 1024x256.
      patient_id: PatientID, to compare with the manifest; it must not reach the records.
      manufacturer: as written, or None.
      sex: 'F', 'M', 'O' or None.
      age: whole years or None.
    """

    views: tuple[FrameView, ...]
    frames: int
    fit: Fit
    patient_id: str
    manufacturer: str | None
    sex: str | None
    age: int | None


@dataclass(frozen=True)
class View:
    """One view as counts.

    Attributes:
      counts: uint16 (1024, 256), native orientation.
      frame: DICOM frame number, from 1.
      name: 'anterior', 'posterior' or 'unknown'.
      view_rule: what decided the name.
      pixel_spacing_mm: row spacing of `counts`; NaN where the file does not say.
      notes: what was assumed or changed, without anything of the patient.
    """

    counts: np.ndarray
    frame: int
    name: str
    view_rule: str
    pixel_spacing_mm: float
    notes: tuple[str, ...]


def read_header(path: Path, frame: int | None = None, view: str | None = None) -> Header:
    """Reads and checks all but the pixels.

    Args:
      path: a DICOM file.
      frame: the manifest's frame number, or None for every view.
      view: the manifest's view, or None.

    Raises:
      DataError: not a DICOM file, or not a planar nuclear medicine image that can be used.
    """
    with _naming(path):
        return _checked_header(_read(path, pixels=False), frame, view)


def read_views(path: Path, frame: int | None = None, view: str | None = None) -> tuple[View, ...]:
    """Decodes the views of a file; arguments and errors as for `read_header`.

    Raises:
      DataError: also where the pixels cannot be decoded or are not counts.
    """
    with _naming(path):
        dataset = _read(path, pixels=True)
        header = _checked_header(dataset, frame, view)
        if "PixelData" not in dataset:
            raise DataError("has no PixelData; the file may be truncated")
        stored, notes = _counts(dataset)
        spacing, spacing_notes = _pixel_spacing(dataset)
        notes += spacing_notes + _radionuclide_notes(dataset)
        return tuple(_view(stored, one, header.fit, spacing, notes) for one in header.views)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Gives every failure the file's name; pydicom raises nearly anything on malformed files."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except InvalidDicomError:
        raise DataError(f"{path}: not a DICOM file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise DataError(f"{path}: too large to decode in the memory there is") from None
    except Exception as error:
        raise DataError(f"{path}: damaged DICOM file ({type(error).__name__}: {error})") from error


def _read(path: Path, pixels: bool) -> Dataset:
    if path.stat().st_size == 0:
        raise DataError("the file is empty")
    return pydicom.dcmread(path, stop_before_pixels=not pixels)


def _checked_header(dataset: Dataset, frame: int | None, view: str | None) -> Header:
    _check_kind(dataset)
    _require_decoder(dataset)
    rows, columns, frames = _matrix(dataset)
    return Header(
        views=resolve_views(dataset, frame, view),
        frames=frames,
        fit=fit_of(rows, columns),
        patient_id=str(dataset.get("PatientID") or ""),
        manufacturer=str(dataset.get("Manufacturer") or "") or None,
        sex=_sex(dataset),
        age=_age(dataset),
    )


def _check_kind(dataset: Dataset) -> None:
    sop_class = str(dataset.get("SOPClassUID") or "")
    modality = str(dataset.get("Modality") or "")
    if sop_class not in _NM_CLASSES:
        if sop_class and sop_class not in _CAPTURE_CLASSES:
            raise DataError(f"is a {UID(sop_class).name}, not a nuclear medicine image")
        if modality != "NM":
            raise DataError(f"has Modality '{modality}', not NM; only nuclear medicine is read")
    kind = dataset.get("ImageType") or []
    values = [kind] if isinstance(kind, str) else list(kind)
    if len(values) > 2 and values[2] and values[2] not in _PLANAR_TYPES:
        raise DataError(f"is a {values[2]} acquisition (ImageType), not a planar whole-body image")


def _matrix(dataset: Dataset) -> tuple[int, int, int]:
    """Rows, columns and frames, bounded before anything of that size is allocated."""
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if min(rows, columns, frames) < 1:
        raise DataError(f"holds no image (Rows {rows}, Columns {columns}, frames {frames})")
    if rows * columns * frames > MAX_PIXELS:
        raise DataError(f"claims {rows}x{columns}x{frames} pixels, more than {MAX_PIXELS}")
    if int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise DataError("is a colour image (a screen capture?); counts are needed")
    photometric = str(dataset.get("PhotometricInterpretation") or "MONOCHROME2")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise DataError(f"is {photometric}; MONOCHROME1 or MONOCHROME2 is needed")
    if int(dataset.get("BitsAllocated") or 16) not in (8, 16):
        raise DataError(f"has {dataset.BitsAllocated} bits a pixel; 8 or 16 are read")
    return rows, columns, frames


def _require_decoder(dataset: Dataset) -> None:
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed or syntax.name.startswith("Deflated"):
        return
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise DataError(f"is compressed as {syntax.name}, which is not read") from None
    if not decoder.is_available:
        package = next((p for pattern, p in _DECODER_PACKAGES if re.search(pattern, syntax)), "")
        raise DataError(f"is compressed as {syntax.name}; install {package} to read it")


def _counts(dataset: Dataset) -> tuple[np.ndarray, tuple[str, ...]]:
    """All frames as unsigned counts (frames, rows, columns), and notes."""
    stored = dataset.pixel_array
    if stored.ndim == 2:
        stored = stored[None]
    expected = _matrix(dataset)
    if stored.shape != (expected[2], *expected[:2]):
        raise DataError(f"decodes to {stored.shape}, but the header says {expected}")
    stored, notes = _uninverted(dataset, stored)
    stored, rescale_notes = _rescaled(dataset, stored)
    if stored.min() < 0:
        raise DataError(
            f"has negative pixels (lowest {stored.min()}), so they are not counts; "
            "was it compressed with loss?"
        )
    return stored, notes + rescale_notes + _checksum_notes(dataset, stored)


def _uninverted(dataset: Dataset, stored: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """MONOCHROME1 stores either inverted counts, or counts meant to be shown dark on white."""
    if dataset.get("PhotometricInterpretation") != "MONOCHROME1":
        return stored, ()
    if int(stored.sum(dtype=np.int64)) == _counts_accumulated(dataset):
        return stored, ("MONOCHROME1 not inverted: pixels add up to CountsAccumulated",)
    if int(dataset.get("PixelRepresentation") or 0):
        raise DataError("is MONOCHROME1 with signed pixels; export it as MONOCHROME2")
    highest = (1 << int(dataset.get("BitsStored") or dataset.BitsAllocated)) - 1
    return highest - stored.astype(np.int64), ("MONOCHROME1 inverted",)


def _rescaled(dataset: Dataset, stored: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    slope = float(dataset.get("RescaleSlope") or 1)
    intercept = float(dataset.get("RescaleIntercept") or 0)
    if (slope, intercept) == (1, 0):
        return stored, ()
    values = stored * slope + intercept
    if not np.isfinite(values).all() or np.abs(values).max() > 2**40:
        raise DataError(f"has an unusable RescaleSlope {slope} or RescaleIntercept {intercept}")
    counts = np.rint(values)
    exact = np.allclose(counts, values, rtol=0, atol=1e-3)
    note = "rescaled" if exact else "rescaled and rounded to whole counts"
    return counts.astype(np.int64), (note,)


def _counts_accumulated(dataset: Dataset) -> int | None:
    value = dataset.get("CountsAccumulated")
    return int(value) if value else None


def _checksum_notes(dataset: Dataset, counts: np.ndarray) -> tuple[str, ...]:
    lossy = (
        dataset.file_meta.TransferSyntaxUID in _LOSSY_SYNTAXES
        or str(dataset.get("LossyImageCompression") or "") == "01"
    )
    if lossy:
        return ("compressed with loss: counts are approximate",)
    said = _counts_accumulated(dataset)
    if said is not None and said != int(counts.sum(dtype=np.int64)):
        return ("sum of pixels differs from CountsAccumulated: pixels may have been altered",)
    return ()


def _radionuclide_notes(dataset: Dataset) -> tuple[str, ...]:
    for item in dataset.get("RadiopharmaceuticalInformationSequence") or []:
        for code in item.get("RadionuclideCodeSequence") or []:
            name = str(code.get("CodeMeaning") or "")
            if name and not _TECHNETIUM.search(name):
                return ("radionuclide is not technetium-99m",)
    return ()


def _pixel_spacing(dataset: Dataset) -> tuple[float, tuple[str, ...]]:
    value = dataset.get("PixelSpacing")
    spacing = [float(one) for one in value] if value else []
    if len(spacing) != 2 or not all(np.isfinite(one) and one > 0 for one in spacing):
        return float("nan"), ("pixel spacing unknown",)
    if abs(spacing[0] - spacing[1]) > 0.01 * spacing[0]:
        return spacing[0], ("pixels are not square: row spacing recorded",)
    return spacing[0], ()


def _view(
    stored: np.ndarray, one: FrameView, fit: Fit, spacing: float, notes: tuple[str, ...]
) -> View:
    native = stored[one.frame - 1]
    counts = fit.counts(native)
    fitted = (fit.description,) if fit.description else ()
    if fit.crops:
        before = int(native.sum(dtype=np.int64)) * fit.repeat**2
        lost = before - int(counts.sum(dtype=np.int64))
        fitted += ("cropping cut off counts",) if lost else ()
    return View(
        counts=counts,
        frame=one.frame,
        name=one.name,
        view_rule=one.rule,
        pixel_spacing_mm=spacing * fit.spacing_factor,
        notes=one.notes + notes + fitted,
    )


def _sex(dataset: Dataset) -> str | None:
    value = str(dataset.get("PatientSex") or "").strip().upper()
    return value if value in ("F", "M", "O") else None


def _age(dataset: Dataset) -> int | None:
    """Years from PatientAge ('065Y', '011M'), else from birth to study."""
    match = re.fullmatch(r"(\d{1,3})([YMWD])", str(dataset.get("PatientAge") or "").strip())
    if match:
        return int(match[1]) // {"Y": 1, "M": 12, "W": 52, "D": 365}[match[2]]
    born, studied = (str(dataset.get(k) or "") for k in ("PatientBirthDate", "StudyDate"))
    if not all(re.fullmatch(r"\d{8}", date, re.ASCII) for date in (born, studied)):
        return None
    years = (int(studied) - int(born)) // 10_000
    return years if 0 <= years <= MAX_AGE else None
