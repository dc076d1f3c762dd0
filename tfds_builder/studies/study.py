"""One study: its files decoded, checked and numbered. The unit in which a data set is built.

In: the manifest rows of a study. Out: its images, each with all of its record, and the rows that
cannot be used, each with the reason.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tfds_builder.commandline.errors import UserError
from tfds_builder.manifest import VIEWS, Row, number_of
from tfds_builder.readers.image_file import decode, read_bytes
from tfds_builder.readers.lesion_mask import read_masks
from tfds_builder.readers.scintigram import Scintigram, View, accepted
from tfds_builder.studies import deidentify
from tfds_builder.studies.duplicates import signature
from tfds_builder.studies.matrix import COLUMNS, ROWS, Fit, fit_of
from tfds_builder.studies.quality import NOT_A_BODY, Quality, assess
from tfds_builder.workers import Announce

UNFORESEEN = "provoked a fault in its reader"
ZEROS_LOST = (
    "patient_id lacks the zeros of the file's PatientID: a spreadsheet may have dropped them"
)
CROPPED = "cropping cut off counts"
SAME_VIEW = "another frame of the same file is read as the same view"

_MOST_CUT_OFF = 0.1

_SCALE_POOL = 4
_SCALE_PERCENTILE = 99


@dataclass(frozen=True, slots=True)
class Study:
    """A study to be read.

    Attributes:
      study_key, patient_key, site_key: pseudonyms; site_key is empty where no site is named.
      rows: its manifest rows, in the order of path and frame.
      salt: of the build, for digests that are compared within it and then forgotten.
    """

    study_key: str
    patient_key: str
    site_key: str
    rows: tuple[Row, ...]
    salt: bytes = b""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known of one image but its pixels.

    Attributes:
      row: manifest row.
      file: the first manifest row of its file.
      frame: frame or page in the file, from 1.
      nth: which of the study's scans it belongs to, from 1.
      image_id: '<scan>-<view>', the scan as `scan_id` calls it.
      view_rule: what decided the view.
      notes: what was assumed, changed or found, in fixed words.
      findings: those of the notes that need a look and come from the file, not from its pixels.
      scale: the bright level, see `intensity_scale`.
      counts_ratio: see `Scintigram`.
      signature: see `duplicates.signature`.
      patient_digest: salted, of the file's PatientID, to see one number under several patients.
    """

    row: int
    file: int
    frame: int
    nth: int
    image_id: str
    patient_key: str
    study_key: str
    site_key: str
    label: str
    view: str
    view_rule: str
    notes: tuple[str, ...]
    findings: tuple[str, ...]
    pixel_spacing_mm: float
    scale: float
    sex: str
    age_band: str
    manufacturer: str
    counts_ratio: float
    quality: Quality
    signature: bytes
    patient_digest: bytes


@dataclass(frozen=True, slots=True)
class Image:
    """One image: uint16 counts (1024, 256), uint8 lesion numbers of the same shape or None."""

    facts: Facts
    counts: np.ndarray
    lesion_mask: np.ndarray | None


@dataclass(frozen=True, slots=True)
class ReadStudy:
    """What was read of a study.

    Attributes:
      images: in the order of their image_id.
      rejected: (row, reason) of every row that cannot be used.
      digests: row -> SHA-256 of the image file and of the lesion mask; no bytes for an image that
        cannot be read, or where no mask is named; a zero for a mask that cannot be read.
    """

    images: tuple[Image, ...]
    rejected: tuple[tuple[int, str], ...]
    digests: dict[int, tuple[bytes, bytes]]


def read_study(
    study: Study,
    announce: Announce = lambda row: None,
    refused: Mapping[int, str] | None = None,
) -> ReadStudy:
    """Reads every file of a study. What is wrong with a file is no error: it is in `rejected`.

    `announce` is told each row before its file is touched; `refused` are rows that are not to be
    decoded, with the reason.
    """
    images: list[Image] = []
    rejected: list[tuple[int, str]] = []
    digests: dict[int, tuple[bytes, bytes]] = {}
    for row in study.rows:
        announce(row.number)
        content, mask, digests[row.number] = _read_files(row)
        try:
            if refused and row.number in refused:
                raise UserError(refused[row.number])
            images += _read_row(study, row, content, mask, images)
        except MemoryError:
            raise  # The worker pool tries again, in a fresh worker.
        except UserError as error:
            rejected.append((row.number, str(error)))
        except Exception as error:
            # Whatever one file provokes in a decoder must not cost the others.
            rejected.append((row.number, f"{UNFORESEEN} ({type(error).__name__})"))
    # Two rows may have taken two frames of one file for the same view.
    times = Counter((image.facts.file, image.facts.view) for image in images)
    for n, image in enumerate(images):
        facts = image.facts
        if facts.view in VIEWS and times[facts.file, facts.view] > 1:
            findings, notes = (*facts.findings, SAME_VIEW), (*facts.notes, SAME_VIEW)
            images[n] = replace(image, facts=replace(facts, findings=findings, notes=notes))
    images.sort(key=lambda image: image.facts.image_id)
    return ReadStudy(tuple(images), tuple(rejected), digests)


def digests_of_studies(
    studies: tuple[Study, ...], announce: Announce = lambda row: None
) -> dict[int, tuple[bytes, bytes]]:
    """Manifest row -> digests of its image file and lesion mask, as in `ReadStudy.digests`."""
    digests = {}
    for study in studies:
        for row in study.rows:
            announce(row.number)
            *_, digests[row.number] = _read_files(row)
    return digests


def scan_id(study_key: str, nth: int) -> str:
    """What the nth scan of a study is called: '<study_key>', then '<study_key>-2'."""
    return study_key if nth == 1 else f"{study_key}-{nth}"


def _read_files(row: Row) -> tuple[bytes | UserError, bytes | UserError, tuple[bytes, bytes]]:
    """The image file and the lesion mask of a row, or why there is none, and their digests."""
    content, digest = _read_file(row.path, b"")
    mask, of_mask = _read_file(row.lesion_mask, b"\0") if row.lesion_mask else (b"", b"")
    return content, mask, (digest, of_mask)


def _read_file(path: Path, unreadable: bytes) -> tuple[bytes | UserError, bytes]:
    try:
        content = read_bytes(path)
    except UserError as error:
        return error, unreadable
    return content, hashlib.sha256(content).digest()


def _read_row(
    study: Study,
    row: Row,
    content: bytes | UserError,
    mask: bytes | UserError,
    earlier: Sequence[Image],
) -> list[Image]:
    """The images of a row, in the first of the study's scans that has no such view `earlier`."""
    if isinstance(content, UserError):
        raise content
    if isinstance(mask, UserError):
        raise mask
    scintigram = decode(content, row.frame, row.view, row.accept)
    views = scintigram.views
    fit = fit_of(*views[0].native.shape)
    masks: Sequence[np.ndarray | None] = [None] * len(views)
    if mask:
        frames = tuple(view.frame for view in views)
        native = read_masks(mask, frames, scintigram.frames, fit.rows, fit.columns)
        masks = [fit.mask(one) for one in native]
    used = {(image.facts.view, image.facts.nth) for image in earlier}
    nth = next(n for n in itertools.count(1) if used.isdisjoint((view.name, n) for view in views))
    return [
        _image(study, row, nth, scintigram, view, fit, own)
        for view, own in zip(views, masks, strict=True)
    ]


def _image(
    study: Study,
    row: Row,
    nth: int,
    scintigram: Scintigram,
    view: View,
    fit: Fit,
    mask: np.ndarray | None,
) -> Image:
    counts = fit.counts(view.native)
    quality = assess(view.native, scintigram.pixel_spacing_mm, scintigram.counts_ratio)
    findings = view.findings
    whole = quality.total * fit.repeat**2
    cut_off = 1 - int(counts.sum(dtype=np.int64)) / whole if fit.crops and whole else 0.0
    if cut_off > _MOST_CUT_OFF:
        # Two views side by side in one picture would be cropped to half of either.
        findings += accepted(
            f"is {fit.rows}x{fit.columns}, and cropping it to {ROWS}x{COLUMNS} would cut off much "
            "of its counts: are both views side by side? cut it into one picture a view",
            row.accept,
        )
    if NOT_A_BODY in quality.findings:
        findings += accepted(f"has {NOT_A_BODY}", row.accept)
    facts = Facts(
        row=row.number,
        file=min(own.number for own in study.rows if own.relative_path == row.relative_path),
        frame=view.frame,
        nth=nth,
        image_id=f"{scan_id(study.study_key, nth)}-{view.name}",
        patient_key=study.patient_key,
        study_key=study.study_key,
        site_key=study.site_key,
        label=row.label,
        view=view.name,
        view_rule=view.rule,
        notes=(
            *view.notes,
            *findings,
            *([ZEROS_LOST] if _lost_zeros(row.patient_id, scintigram.patient_id) else []),
            *filter(None, (fit.description, CROPPED if cut_off > 0 else "")),
            *quality.findings,
        ),
        findings=findings,
        pixel_spacing_mm=scintigram.pixel_spacing_mm * fit.spacing_factor,
        scale=intensity_scale(counts),
        sex=row.sex or scintigram.sex or deidentify.UNKNOWN,
        age_band=deidentify.age_band(scintigram.age if row.age is None else row.age),
        manufacturer=deidentify.manufacturer(scintigram.manufacturer),
        counts_ratio=scintigram.counts_ratio,
        quality=quality,
        signature=signature(counts),
        patient_digest=_patient_digest(study.salt, scintigram.patient_id),
    )
    return Image(facts, counts, mask)


def _lost_zeros(written: str, own: str) -> bool:
    number = number_of(written)
    return number != "" and written != own.strip() and number == number_of(own.strip())


def _patient_digest(salt: bytes, patient_id: str) -> bytes:
    # Any character set is possible in a file, also one that gives no valid text.
    number = patient_id.encode("utf-8", "surrogatepass")
    return hashlib.sha256(salt + number).digest()[:8] if number else b""


def intensity_scale(counts: np.ndarray) -> float:
    """The bright level, in counts a pixel, that normalisation divides counts (1024, 256) by.

    The 99th percentile over positive pixels, after 4x4 sum-pooling (divided by 16): single pixels
    hold so few counts that their percentile would be a small whole number, and the maximum would be
    the bladder or the injection site. At least 1/16, one count a pooled pixel, so that an empty
    image can be divided too.
    """
    pool = _SCALE_POOL
    # Rows first, then strided columns: several times faster than one sum over both small axes, and
    # in 16 bits, where they hold a block's sum, twice as fast again.
    fits = counts.max() < 2**16 // pool**2
    rows = np.add.reduce(
        counts.reshape(ROWS // pool, pool, COLUMNS), axis=1, dtype=np.uint16 if fits else np.uint32
    )
    pooled = rows[:, ::pool] + rows[:, 1::pool]
    pooled += rows[:, 2::pool]
    pooled += rows[:, 3::pool]
    positive = pooled[pooled > 0]
    bright = float(np.percentile(positive, _SCALE_PERCENTILE)) if positive.size else 0.0
    return max(bright, 1.0) / pool**2
