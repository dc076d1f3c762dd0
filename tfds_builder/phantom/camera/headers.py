"""The header of a synthetic study, in the manner of one of two makers of gamma cameras.

In: a scan, and the age of its patient. Out: a pydicom data set of the Nuclear Medicine Image object
without its pixels. Every file says that it is computed: in the patient's name and comments, and in
the maker's name. What follows GE is taken from NEMA's whole-body sample NM1, what follows Siemens
from its private dictionary and from headers shown in public.
"""

import dataclasses
import datetime
import hashlib
import json

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID

from tfds_builder.phantom.camera.scan import Scan

VERSION = "2"
"""Version of the phantom: changes whenever a given seed would give other images."""

NM_IMAGE_STORAGE = UID("1.2.840.10008.5.1.4.1.1.20")
INJECTION_TIME = datetime.time(9)
"""Of every patient; the acquisition follows after the scan's uptake time."""

_WINDOW_KEV = ("126.45", "154.56")
# Width and height of a detector of GE's Infinia and of Siemens's Symbia.
_GE_FIELD_MM, _SIEMENS_FIELD_MM = (540, 400), (533, 387)
_GE_CREATOR, _SIEMENS_CREATOR = "GEMS_GENIE_1", "SIEMENS MED NM"


def patient_id(seed: int, patient: int) -> str:
    """PatientID of a synthetic patient, obviously not a real one."""
    return f"PHANTOM-{seed}-{patient:05d}"


def nm_header(scan: Scan, age: int) -> Dataset:
    """The header of a study, written as `scan.acquisition.camera` would; the age is in years."""
    dataset = Dataset()
    _identify(dataset, scan, age)
    _describe_acquisition(dataset, scan)
    _describe_source(dataset, scan)
    if scan.acquisition.camera == "ge":
        _write_like_ge(dataset, scan)
    else:
        _write_like_siemens(dataset, scan)
    return dataset


def _duration_ms(scan: Scan) -> int:
    return round(1000 * scan.protocol.grid.length_mm / scan.acquisition.speed_mm_s)


def _uid(scan: Scan, purpose: str) -> UID:
    protocol = json.dumps(dataclasses.asdict(scan.protocol), sort_keys=True)
    text = f"phantom {VERSION} {scan.seed} {scan.number} {scan.study} {protocol} {purpose}"
    return UID(f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], 'big')}")


def _identify(dataset: Dataset, scan: Scan, age: int) -> None:
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID = NM_IMAGE_STORAGE
    dataset.SOPInstanceUID = _uid(scan, "image")
    dataset.StudyInstanceUID = _uid(scan, "study")
    dataset.SeriesInstanceUID = _uid(scan, "series")
    dataset.PatientName = f"Phantom^Synthetic {scan.number:05d}"
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
    dataset.InstanceNumber = 1
    dataset.Modality = "NM"
    dataset.BodyPartExamined = "WHOLEBODY"


def _describe_acquisition(dataset: Dataset, scan: Scan) -> None:
    pixel = f"{scan.protocol.pixel_mm:g}"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "WHOLE BODY", "EMISSION"]
    dataset.FrameIncrementPointer = [0x00540010, 0x00540020]
    dataset.EnergyWindowVector = [1, 1]
    dataset.DetectorVector = [1, 2]
    dataset.NumberOfEnergyWindows = 1
    dataset.NumberOfDetectors = 2
    dataset.PixelSpacing = [pixel, pixel]
    dataset.WholeBodyTechnique = "1PS"
    dataset.ScanVelocity = f"{scan.acquisition.speed_mm_s:g}"
    dataset.ScanLength = round(scan.protocol.grid.length_mm)
    dataset.ActualFrameDuration = _duration_ms(scan)
    dataset.CountsAccumulated = int(scan.counts.sum(dtype=np.int64))
    dataset.LossyImageCompression = "00"
    dataset.PatientOrientation = ""
    supine = _code("40199007", "SCT", "supine")
    recumbent = _code("102538003", "SCT", "recumbent")
    recumbent.PatientOrientationModifierCodeSequence = [supine]
    dataset.PatientOrientationCodeSequence = [recumbent]
    dataset.PatientGantryRelationshipCodeSequence = [_code("102540008", "SCT", "headfirst")]


def _describe_source(dataset: Dataset, scan: Scan) -> None:
    limits, window, source = Dataset(), Dataset(), Dataset()
    limits.EnergyWindowLowerLimit, limits.EnergyWindowUpperLimit = _WINDOW_KEV
    window.EnergyWindowName = "Tc99m"
    window.EnergyWindowRangeSequence = [limits]
    dataset.EnergyWindowInformationSequence = [window]
    source.RadionuclideCodeSequence = [_code("72454006", "SCT", "^99m^Technetium")]
    source.Radiopharmaceutical = "Tc-99m MDP"
    source.RadiopharmaceuticalRoute = "Intravenous"
    source.RadionuclideTotalDose = f"{scan.acquisition.activity_mbq:.1f}"
    source.RadiopharmaceuticalStartTime = f"{INJECTION_TIME:%H%M%S}"
    dataset.RadiopharmaceuticalInformationSequence = [source]


def _stamp(dataset: Dataset, scan: Scan, fraction: str) -> None:
    uptake = datetime.timedelta(seconds=round(3600 * scan.acquisition.uptake_hours))
    # The scan's date is that of the acquisition: after a long uptake the injection was on the eve.
    clock = (datetime.datetime.combine(scan.date, INJECTION_TIME) + uptake).time()
    begun = datetime.datetime.combine(scan.date, clock)
    ended = begun + datetime.timedelta(milliseconds=_duration_ms(scan))
    moments = {"Study": begun, "Series": begun, "Acquisition": begun, "Content": ended}
    for name, moment in moments.items():
        setattr(dataset, f"{name}Date", f"{moment:%Y%m%d}")
        setattr(dataset, f"{name}Time", f"{moment:%H%M%S}{fraction}")


def _write_like_ge(dataset: Dataset, scan: Scan) -> None:
    """Codes of SNOMED RT, a frame of reference, private blocks that name data sets and views."""
    _stamp(dataset, scan, "")
    dataset.Manufacturer = "Dscint phantom (GE-like)"
    dataset.ManufacturerModelName = "Computed dual head, GE-like"
    dataset.StationName = "PHANTOM"
    dataset.StudyDescription = dataset.ProtocolName = "Whole Body Bone"
    dataset.SeriesDescription = dataset.ImageID = "WHOLE BODY"
    dataset.SeriesNumber = 1
    dataset.AcquisitionTerminationCondition = "MANU"
    dataset.TableHeight = dataset.TableTraverse = "0"
    dataset.PositionReferenceIndicator = ""
    dataset.FrameOfReferenceUID = _uid(scan, "frame of reference")
    dataset.DetectorInformationSequence = [
        _detector(scan, _code("G-5215", "SRT", "Anterior"), _GE_FIELD_MM),
        _detector(scan, _code("G-5216", "SRT", "Posterior"), _GE_FIELD_MM),
    ]
    for detector, left in zip(dataset.DetectorInformationSequence, (1, -1), strict=True):
        edge = (scan.protocol.pixel_mm - _width_mm(scan)) / 2
        detector.ImageOrientationPatient = [left, 0, 0, 0, 0, -1]
        detector.ImagePositionPatient = [f"{left * edge:g}", "0", "0"]
    _add_genie_blocks(dataset, scan)


def _add_genie_blocks(dataset: Dataset, scan: Scan) -> None:
    study = dataset.private_block(0x0009, _GE_CREATOR, create=True)
    study.add_new(0x10, "LO", "WB BONE")
    study.add_new(0x20, "LO", "WHOLE BODY")
    study.add_new(0x26, "SL", 1)
    study.add_new(0x27, "SL", 2)
    image = dataset.private_block(0x0011, _GE_CREATOR, create=True)
    image.add_new(0x0A, "SL", 1)
    image.add_new(0x0B, "SL", _duration_ms(scan))
    image.add_new(0x0D, "LO", "Tc99m")
    image.add_new(0x10, "LO", "WHOLE BODY")
    image.add_new(0x12, "LO", ["WHOLE BODY_ANT", "WHOLE BODY_POST"])
    image.add_new(0x13, "SL", 2)
    image.add_new(0x1B, "SL", 1)
    image.add_new(0x30, "LO", ["WHOLE BODY_E", "WHOLE BODY_F"])
    image.add_new(0x3B, "FD", 1.0)
    image.add_new(0x3C, "FD", 0.0)
    field = dataset.private_block(0x0013, _GE_CREATOR, create=True)
    field.add_new(0x10, "FD", [_width_mm(scan), scan.protocol.grid.length_mm])
    field.add_new(0x16, "SL", 140)


def _write_like_siemens(dataset: Dataset, scan: Scan) -> None:
    """Codes of SNOMED CT, start angles, series from 1000, fractions of seconds, private blocks."""
    _stamp(dataset, scan, ".00")
    dataset.Manufacturer = "Dscint phantom (Siemens-like)"
    dataset.ManufacturerModelName = "Computed dual head, Siemens-like"
    dataset.StudyDescription = "Bone scan"
    dataset.SeriesDescription = "WB Bone"
    dataset.SeriesNumber = 1000
    dataset.AcquisitionTerminationCondition = "TIME"
    dataset.DetectorInformationSequence = [
        _detector(scan, _code("399321004", "SCT", "Anterior projection"), _SIEMENS_FIELD_MM),
        _detector(scan, _code("399001007", "SCT", "Posterior projection"), _SIEMENS_FIELD_MM),
    ]
    for detector, angle in zip(dataset.DetectorInformationSequence, ("180", "0"), strict=True):
        detector.StartAngle = angle
        detector.ImageOrientationPatient = detector.ImagePositionPatient = ""
    camera = dataset.private_block(0x0033, _SIEMENS_CREATOR, create=True)
    camera.add_new(0x29, "FL", 9.5)
    camera.add_new(0x30, "LO", "WB Bone")
    camera.add_new(0x38, "FL", 1.0)


def _width_mm(scan: Scan) -> float:
    return scan.protocol.grid.columns * scan.protocol.pixel_mm


def _detector(scan: Scan, view: Dataset, field_mm: tuple[int, int]) -> Dataset:
    detector = Dataset()
    detector.CollimatorGridName = scan.protocol.collimator
    detector.CollimatorType = "PARA"
    detector.FieldOfViewShape = "RECTANGLE"
    detector.FieldOfViewDimensions = list(field_mm)
    detector.FocalDistance = "0"
    detector.XFocusCenter = detector.YFocusCenter = "0"
    detector.ZoomCenter = detector.ZoomFactor = ["1", "1"]
    detector.CenterOfRotationOffset = "0"
    detector.GantryDetectorTilt = "0"
    detector.ViewCodeSequence = [view]
    return detector


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code
