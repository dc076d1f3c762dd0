"""Writes the phantom cohort: DICOM files, lesion masks, tables of lesions, the manifest, its key.

In: scans. Out: files under one folder, each complete or absent; the same scan gives the same bytes.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.uid import UID, ExplicitVRLittleEndian

from tfds_builder.commandline.files import write_bytes, write_text
from tfds_builder.phantom.camera.headers import NM_IMAGE_STORAGE, VERSION, nm_header, patient_id
from tfds_builder.phantom.camera.protocol import Protocol
from tfds_builder.phantom.camera.scan import Case, Scan
from tfds_builder.tables import csv_text

FOLDERS = ("images", "masks", "lesions")
MANIFEST_FIELDS = ("path", "patient_id", "label", "study_id", "sex", "age", "lesion_mask")
LESION_FIELDS = (
    "path", "patient_id", "study_id", "label", "number", "kind", "site", "side", "cold",
    "volume_ml", "contrast_anterior", "contrast_posterior", "snr_anterior", "snr_posterior",
    "visible_anterior", "visible_posterior",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class StudyFiles:
    """Relative posix paths of a study; mask and lesions are empty where the patient has none."""

    image: str
    mask: str = ""
    lesions: str = ""

    @property
    def present(self) -> tuple[str, ...]:
        """The files that the study has, the image last."""
        return tuple(name for name in (self.lesions, self.mask, self.image) if name)


def study_id(study: int) -> str:
    """A study's name within its patient, from 1."""
    return f"study_{study + 1}"


def study_files(case: Case, patient: int) -> list[StudyFiles]:
    """The files of each study; patients count from 0 and studies, in names, from 1."""
    files = []
    for study in range(len(case.dates)):
        stem = f"patient_{patient:05d}_{study_id(study)}"
        lesions = (f"masks/{stem}.tif", f"lesions/{stem}.csv") if case.label != "normal" else ()
        files.append(StudyFiles(f"images/{stem}.dcm", *lesions))
    return files


def pseudonym_key(seed: int) -> str:
    """64 hex characters from the seed: synthetic patients need no secret, rebuilds the same key."""
    return hashlib.sha256(f"phantom pseudonym key {seed}".encode()).hexdigest()


def parameters_text(patients: int, seed: int, protocol: Protocol) -> bytes:
    """The content of phantom.json: all that the cohort's images are a function of."""
    asked = dataclasses.asdict(protocol)
    values = {"patients": patients, "seed": seed, "version": VERSION, "protocol": asked}
    return (json.dumps(values, indent=2) + "\n").encode()


def manifest_rows(case: Case, seed: int, patient: int) -> list[tuple[str, ...]]:
    """Rows of the manifest, one for each study, in the order of MANIFEST_FIELDS."""
    return [
        (
            files.image, patient_id(seed, patient), case.label, study_id(study),
            case.patient.sex, str(age_at(case, study)), files.mask,
        )
        for study, files in enumerate(study_files(case, patient))
    ]  # fmt: skip


def lesion_rows(scan: Scan, files: StudyFiles) -> list[tuple[str, ...]]:
    """Rows of a study's table of lesions, by number, in the order of LESION_FIELDS."""
    study = (files.image, patient_id(scan.seed, scan.number), study_id(scan.study), scan.label)
    truth = {True: "true", False: "false"}
    return [
        (
            *study, str(lesion.number), lesion.kind, lesion.site, lesion.side, truth[lesion.cold],
            f"{lesion.volume_ml:.3f}", *(f"{value:.3f}" for value in lesion.contrast),
            *(f"{value:.2f}" for value in lesion.snr), *(truth[seen] for seen in lesion.visible),
        )
        for lesion in scan.lesions
    ]  # fmt: skip


def age_at(case: Case, study: int) -> int:
    """Age in years at a study; every synthetic patient was born on a first of January."""
    return case.patient.age + case.dates[study].year - case.dates[0].year


def joined_lesions(folder: Path, names: Iterable[str]) -> bytes:
    """The tables of lesions of several studies, `names` below `folder`, as one."""
    bodies = ((folder / name).read_bytes().partition(b"\n")[2] for name in names)
    return csv_text(LESION_FIELDS, ()).encode() + b"".join(bodies)


def write_scan(folder: Path, scan: Scan, case: Case) -> None:
    """Writes the files of one study below `folder`, the image last."""
    files = study_files(case, scan.number)[scan.study]
    if files.lesions:
        rows = lesion_rows(scan, files)
        write_text(folder / files.lesions, csv_text(LESION_FIELDS, rows))
        write_bytes(folder / files.mask, mask_bytes(scan.masks))
    write_bytes(folder / files.image, dicom_bytes(scan, age_at(case, scan.study)))


def mask_bytes(masks: np.ndarray) -> bytes:
    """A TIFF of one page for each view of `masks` (2, rows, columns) uint8, deflate compressed."""
    pages = [Image.fromarray(mask) for mask in masks]
    buffer = io.BytesIO()
    pages[0].save(
        buffer, "TIFF", save_all=True, append_images=pages[1:], compression="tiff_deflate"
    )
    return buffer.getvalue()


def dicom_bytes(scan: Scan, age: int) -> bytes:
    """The study as an NM Image Storage file of two frames, anterior then posterior."""
    header = nm_header(scan, age)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = NM_IMAGE_STORAGE
    meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID("2.25.209384756102938475610293847561029384")
    meta.ImplementationVersionName = f"DSCINT_PHANTOM_{VERSION}"
    dataset = FileDataset("", header, file_meta=meta)
    dataset.preamble = b"\0" * 128
    dataset.SoftwareVersions = VERSION
    _attach_pixels(dataset, scan)
    buffer = DicomBytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _attach_pixels(dataset: Dataset, scan: Scan) -> None:
    counts = scan.counts
    # NEMA's sample of a GE camera is signed; more counts than that holds are rare.
    signed = scan.acquisition.camera == "ge" and int(counts.max()) < 2**15
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = counts.shape
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = int(signed)
    dataset.SmallestImagePixelValue = int(counts.min())
    dataset.LargestImagePixelValue = int(counts.max())
    dataset.PixelData = np.ascontiguousarray(counts, "<u2").tobytes()
