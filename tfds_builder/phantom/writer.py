"""Writes the phantom cohort: DICOM files, lesion masks, the manifest and its key.

In: scans. Out: files under one folder, each complete or absent; the same scan gives the same bytes.
"""

import csv
import hashlib
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.uid import UID, ExplicitVRLittleEndian

from tfds_builder.atomic import write_bytes
from tfds_builder.phantom.scan import Case, Scan

VERSION = "1"
"""Version of the phantom: changes whenever a given seed would give other images."""

NM_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.20"
MANIFEST_FIELDS = ("path", "patient_id", "label", "study_id", "sex", "age", "lesion_mask")


def study_name(patient: int, study: int) -> str:
    """File stem of a study; patients count from 0 and studies, in names, from 1."""
    return f"patient_{patient:05d}_study_{study + 1}"


def patient_id(seed: int, patient: int) -> str:
    """PatientID of a synthetic patient, obviously not a real one."""
    return f"PHANTOM-{seed}-{patient:05d}"


def pseudonym_key(seed: int) -> str:
    """64 hex characters from the seed: synthetic patients need no secret, rebuilds the same key."""
    return hashlib.sha256(f"phantom pseudonym key {seed}".encode()).hexdigest()


def parameters_text(patients: int, seed: int) -> bytes:
    """The content of phantom.json."""
    values = {"patients": patients, "seed": seed, "version": VERSION}
    return (json.dumps(values, indent=2) + "\n").encode()


def study_files(case: Case, patient: int) -> list[list[str]]:
    """Relative posix paths of each study: the image, then the mask where the label has lesions."""
    files = []
    for study in range(len(case.dates)):
        stem = study_name(patient, study)
        mask = [] if case.label == "normal" else [f"masks/{stem}.tif"]
        files.append([f"images/{stem}.dcm", *mask])
    return files


def manifest_rows(case: Case, seed: int, patient: int) -> list[tuple[str, ...]]:
    """Rows of the manifest, one for each study, in the order of MANIFEST_FIELDS."""
    return [
        (
            files[0], patient_id(seed, patient), case.label, f"study_{study + 1}",
            case.patient.sex, str(age_at(case, study)), files[1] if len(files) > 1 else "",
        )
        for study, files in enumerate(study_files(case, patient))
    ]  # fmt: skip


def age_at(case: Case, study: int) -> int:
    """Age in years at a study; the patient turns older between studies."""
    return case.patient.age + (case.dates[study] - case.dates[0]).days // 365


def manifest_text(rows: list[tuple[str, ...]]) -> bytes:
    """The content of manifest.csv."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(MANIFEST_FIELDS)
    writer.writerows(rows)
    return text.getvalue().encode()


def write_scan(folder: Path, scan: Scan, case: Case) -> None:
    """Writes the files of one study below `folder`, the mask before the image."""
    files = study_files(case, scan.number)[scan.study]
    if len(files) > 1:
        write_bytes(folder / files[1], mask_bytes(scan.masks))
    write_bytes(folder / files[0], dicom_bytes(scan, age_at(case, scan.study)))


def mask_bytes(masks: np.ndarray) -> bytes:
    """A TIFF of one page for each view of `masks` (2, 1024, 256) uint8, deflate compressed."""
    pages = [Image.fromarray(mask) for mask in masks]
    buffer = io.BytesIO()
    pages[0].save(
        buffer, "TIFF", save_all=True, append_images=pages[1:], compression="tiff_deflate"
    )
    return buffer.getvalue()


def dicom_bytes(scan: Scan, age: int) -> bytes:
    """The study as an NM Image Storage file of two frames, anterior then posterior."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(NM_IMAGE_STORAGE)
    meta.MediaStorageSOPInstanceUID = _uid(scan, "image")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID("2.25.209384756102938475610293847561029384")
    meta.ImplementationVersionName = "DSCINT_PHANTOM_1"
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    _identify(dataset, scan, age)
    _describe_acquisition(dataset, scan)
    _describe_detectors(dataset)
    _describe_source(dataset, scan)
    _attach_pixels(dataset, scan.counts, scan.protocol.pixel_mm)
    buffer = DicomBytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _uid(scan: Scan, purpose: str) -> UID:
    text = f"phantom {VERSION} {scan.seed} {scan.number} {scan.study} {purpose}"
    return UID(f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], 'big')}")


def _identify(dataset: Dataset, scan: Scan, age: int) -> None:
    date = scan.date.strftime("%Y%m%d")
    name = f"{scan.number:05d}"
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = UID(NM_IMAGE_STORAGE)
    dataset.SOPInstanceUID = _uid(scan, "image")
    dataset.StudyInstanceUID = _uid(scan, "study")
    dataset.SeriesInstanceUID = _uid(scan, "series")
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = date
    dataset.ContentDate = date
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = "120000"
    dataset.ContentTime = "120000"
    dataset.PatientName = f"Phantom^Synthetic {name}"
    dataset.PatientID = patient_id(scan.seed, scan.number)
    dataset.PatientBirthDate = f"{scan.date.year - age}0101"
    dataset.PatientSex = scan.patient.sex
    dataset.PatientAge = f"{age:03d}Y"
    dataset.PatientWeight = f"{scan.patient.weight_kg:.1f}"
    dataset.PatientSize = f"{scan.patient.height_mm / 1000:.3f}"
    dataset.PatientComments = "Synthetic patient: computed, not acquired"
    dataset.AccessionNumber = ""
    dataset.ReferringPhysicianName = ""
    dataset.StudyID = str(scan.study + 1)
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = 1
    dataset.Modality = "NM"
    dataset.BodyPartExamined = "WHOLEBODY"
    dataset.Manufacturer = "Dscint phantom"
    dataset.ManufacturerModelName = "Computed LEHR dual head"
    dataset.SoftwareVersions = VERSION
    dataset.StudyDescription = "Whole-body bone scintigraphy"
    dataset.SeriesDescription = "WHOLE BODY"
    dataset.PatientOrientation = ""


def _describe_acquisition(dataset: Dataset, scan: Scan) -> None:
    length = scan.protocol.grid.length_mm
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "WHOLE BODY", "EMISSION"]
    dataset.WholeBodyTechnique = "1PS"
    dataset.ScanVelocity = f"{scan.acquisition.speed_mm_s:.2f}"
    dataset.ScanLength = str(round(length))
    dataset.ActualFrameDuration = str(round(1000 * length / scan.acquisition.speed_mm_s))
    dataset.CountsAccumulated = str(int(scan.counts.sum(dtype=np.int64)))
    dataset.AcquisitionTerminationCondition = "TIME"
    dataset.TableTraverse = "0"
    dataset.TableHeight = "0"
    dataset.LossyImageCompression = "00"
    dataset.PatientOrientationCodeSequence = [_code("F-10450", "SRT", "recumbent")]
    supine = _code("F-10340", "SRT", "supine")
    dataset.PatientOrientationCodeSequence[0].PatientOrientationModifierCodeSequence = [supine]
    dataset.PatientGantryRelationshipCodeSequence = [_code("F-10470", "SRT", "headfirst")]


def _describe_detectors(dataset: Dataset) -> None:
    dataset.NumberOfDetectors = 2
    detectors = []
    views = (("G-5215", "Anterior", "0"), ("G-5216", "Posterior", "180"))
    for code, meaning, angle in views:
        detector = Dataset()
        detector.CollimatorGridName = "LEHR"
        detector.CollimatorType = "PARA"
        detector.FieldOfViewShape = "RECTANGLE"
        detector.FieldOfViewDimensions = ["400", "614"]
        detector.FocalDistance = "0"
        detector.XFocusCenter = detector.YFocusCenter = "0"
        detector.ZoomCenter = detector.ZoomFactor = ["1", "1"]
        detector.CenterOfRotationOffset = "0"
        detector.GantryDetectorTilt = "0"
        detector.StartAngle = angle
        detector.ImageOrientationPatient = ["1", "0", "0", "0", "0", "-1"]
        detector.ImagePositionPatient = ["0", "0", "0"]
        if angle == "180":
            detector.ImageOrientationPatient = ["-1", "0", "0", "0", "0", "-1"]
        detector.ViewCodeSequence = [_code(code, "SRT", meaning)]
        detectors.append(detector)
    dataset.DetectorInformationSequence = detectors


def _describe_source(dataset: Dataset, scan: Scan) -> None:
    dataset.NumberOfEnergyWindows = 1
    limits = Dataset()
    limits.EnergyWindowLowerLimit, limits.EnergyWindowUpperLimit = "126.45", "154.55"
    window = Dataset()
    window.EnergyWindowName = "Tc-99m 20%"
    window.EnergyWindowRangeSequence = [limits]
    dataset.EnergyWindowInformationSequence = [window]
    source = Dataset()
    source.RadionuclideCodeSequence = [_code("C-163A8", "SRT", "99m Technetium")]
    source.Radiopharmaceutical = "Tc-99m MDP"
    source.RadiopharmaceuticalRoute = "Intravenous"
    source.RadionuclideTotalDose = f"{scan.acquisition.activity_mbq:.1f}"
    minutes = 12 * 60 - round(60 * scan.acquisition.uptake_hours)
    source.RadiopharmaceuticalStartTime = f"{minutes // 60:02d}{minutes % 60:02d}00"
    dataset.RadiopharmaceuticalInformationSequence = [source]


def _attach_pixels(dataset: Dataset, counts: np.ndarray, pixel_mm: float) -> None:
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.NumberOfFrames = len(counts)
    dataset.FrameIncrementPointer = [0x00540010, 0x00540020]
    dataset.EnergyWindowVector = [1, 1]
    dataset.DetectorVector = [1, 2]
    dataset.Rows, dataset.Columns = counts.shape[1:]
    dataset.PixelSpacing = [f"{pixel_mm:.2f}"] * 2
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 0
    dataset.PixelData = np.ascontiguousarray(counts, "<u2").tobytes()


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code
