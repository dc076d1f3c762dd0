"""The phantom's DICOM files: both makers' headers, as the ingest and as validators read them."""

import dataclasses
import datetime
import io
import shutil
import subprocess

import numpy as np
import pydicom
import pytest
from pydicom import config

from tfds_builder.phantom import simulate
from tfds_builder.phantom.camera.protocol import CAMERAS, Protocol
from tfds_builder.phantom.writer import dicom_bytes
from tfds_builder.readers.dicom import read_dicom, read_header
from tfds_builder.studies.deidentify import manufacturer

SEED, NUMBER, AGE = 77, 3, 61
MAKERS = {"ge": "GE", "siemens": "Siemens"}


def _scan(study=0, **protocol):
    return simulate(SEED, NUMBER, study, Protocol(**protocol))


def _dataset(content):
    return pydicom.dcmread(io.BytesIO(content))


def _bytes(dataset):
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _moment(dataset, name):
    text = dataset[f"{name}Date"].value + dataset[f"{name}Time"].value
    return datetime.datetime.strptime(text[:14], "%Y%m%d%H%M%S")


@pytest.fixture(scope="module")
def scans():
    return {camera: _scan(camera=camera) for camera in CAMERAS}


@pytest.fixture(params=CAMERAS)
def camera(request):
    return request.param


@pytest.fixture
def scan(scans, camera):
    return scans[camera]


@pytest.fixture
def content(scan):
    return dicom_bytes(scan, AGE)


def test_the_header_says_how_the_scan_was_acquired(scan, content):
    dataset = _dataset(content)
    assert dataset.SOPClassUID == "1.2.840.10008.5.1.4.1.1.20"
    assert dataset.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert list(dataset.ImageType) == ["ORIGINAL", "PRIMARY", "WHOLE BODY", "EMISSION"]
    assert [int(tag) for tag in dataset.FrameIncrementPointer] == [0x00540010, 0x00540020]
    assert (dataset.NumberOfFrames, dataset.Rows, dataset.Columns) == scan.counts.shape
    assert dataset.DetectorVector == [1, 2]
    assert dataset.EnergyWindowVector == [1, 1]
    assert list(dataset.PixelSpacing) == [scan.protocol.pixel_mm] * 2
    assert float(dataset.ScanVelocity) == scan.acquisition.speed_mm_s
    assert dataset.ActualFrameDuration == pytest.approx(
        1000 * dataset.ScanLength / dataset.ScanVelocity, rel=0.001
    )
    assert dataset.CountsAccumulated == int(scan.counts.sum(dtype=np.int64))
    assert dataset.LargestImagePixelValue == scan.counts.max()
    names = {item.CollimatorGridName for item in dataset.DetectorInformationSequence}
    assert names == {scan.protocol.collimator}
    limits = dataset.EnergyWindowInformationSequence[0].EnergyWindowRangeSequence[0]
    assert limits.EnergyWindowLowerLimit < 140.5 < limits.EnergyWindowUpperLimit
    source = dataset.RadiopharmaceuticalInformationSequence[0]
    assert float(source.RadionuclideTotalDose) == pytest.approx(scan.acquisition.activity_mbq)
    np.testing.assert_array_equal(dataset.pixel_array, scan.counts)


def test_the_header_says_that_it_is_synthetic(scan, content):
    dataset = _dataset(content)
    assert str(dataset.PatientName).startswith("Phantom^Synthetic")
    assert dataset.PatientID == f"PHANTOM-{SEED}-{NUMBER:05d}"
    assert "Synthetic" in dataset.PatientComments
    assert "phantom" in dataset.Manufacturer
    assert dataset.SOPInstanceUID.startswith("2.25.")
    assert dataset.PatientAge == f"{AGE:03d}Y"
    assert dataset.PatientSex == scan.patient.sex


@pytest.mark.parametrize("hours", [0.5, 3.25, 14.9, 23.0])
def test_the_acquisition_follows_the_injection_by_the_uptake_time(camera, hours):
    scan = _scan(camera=camera, uptake_hours=hours)
    dataset = _dataset(dicom_bytes(scan, AGE))
    begun = _moment(dataset, "Acquisition")
    assert begun.date() == scan.date
    clock = dataset.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartTime
    injected = datetime.datetime.strptime(clock, "%H%M%S").time()
    injected = datetime.datetime.combine(begun.date(), injected)
    assert (begun - injected).total_seconds() % 86400 == pytest.approx(3600 * hours, abs=1)
    lasted = _moment(dataset, "Content") - begun
    assert lasted.total_seconds() == pytest.approx(dataset.ActualFrameDuration / 1000, abs=1)


def test_the_ge_like_file_names_views_in_codes_and_in_private_texts(scans):
    dataset = _dataset(dicom_bytes(scans["ge"], AGE))
    views = [item.ViewCodeSequence[0] for item in dataset.DetectorInformationSequence]
    assert [view.CodeValue for view in views] == ["G-5215", "G-5216"]
    assert {view.CodingSchemeDesignator for view in views} == {"SRT"}
    block = dataset.private_block(0x0011, "GEMS_GENIE_1")
    assert list(block[0x12].value) == ["WHOLE BODY_ANT", "WHOLE BODY_POST"]
    assert list(block[0x30].value) == ["WHOLE BODY_E", "WHOLE BODY_F"]
    assert dataset.PixelRepresentation == 1


def test_the_siemens_like_file_names_views_in_codes_and_angles(scans):
    dataset = _dataset(dicom_bytes(scans["siemens"], AGE))
    items = dataset.DetectorInformationSequence
    views = [item.ViewCodeSequence[0] for item in items]
    assert [view.CodeValue for view in views] == ["399321004", "399001007"]
    assert {view.CodingSchemeDesignator for view in views} == {"SCT"}
    assert [float(item.StartAngle) for item in items] == [180, 0]
    assert dataset.AcquisitionTime.endswith(".00")
    assert dataset.PixelRepresentation == 0
    assert not any(element.tag.group == 0x0011 for element in dataset)


def test_the_ingest_reads_both_views_of_either_maker_without_assumptions(scan, content, camera):
    scintigram = read_dicom(content)
    assert [view.name for view in scintigram.views] == ["anterior", "posterior"]
    for view, counts in zip(scintigram.views, scan.counts, strict=True):
        assert (view.rule, view.notes, view.findings) == ("coded view", (), ())
        np.testing.assert_array_equal(view.native, counts)
    assert scintigram.counts_ratio == 1
    assert scintigram.pixel_spacing_mm == scan.protocol.pixel_mm
    assert manufacturer(scintigram.manufacturer) == MAKERS[camera]


@pytest.mark.parametrize(
    "camera, rule", [("ge", "GE private text"), ("siemens", "start angle")], indirect=["camera"]
)
def test_without_codes_the_makers_own_habit_tells_the_views(content, rule):
    dataset = _dataset(content)
    for item in dataset.DetectorInformationSequence:
        del item.ViewCodeSequence
    views = read_header(_bytes(dataset)).views
    assert [(view.name, view.rule) for view in views] == [("anterior", rule), ("posterior", rule)]
    assert not any(view.findings for view in views)


def test_every_value_obeys_its_representation_in_reading_and_writing(scan, monkeypatch):
    monkeypatch.setattr(config.settings, "_reading_validation_mode", config.RAISE)
    monkeypatch.setattr(config.settings, "_writing_validation_mode", config.RAISE)
    content = dicom_bytes(scan, AGE)
    dataset = _dataset(content)
    assert sum(element.value is not None for element in dataset.iterall()) > 80
    assert _bytes(dataset) == content


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("matrix", [(1024, 256, 2.4), (512, 128, 4.8)])
def test_the_file_is_a_valid_nuclear_medicine_image(camera, matrix, tmp_path):
    rows, columns, pixel = matrix
    scan = _scan(camera=camera, rows=rows, columns=columns, pixel_mm=pixel)
    path = tmp_path / "scan.dcm"
    path.write_bytes(dicom_bytes(scan, AGE))
    ran = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, timeout=60)
    said = (ran.stdout + ran.stderr).splitlines()
    assert "NMImage" in said
    assert not [line for line in said if line.startswith("Error")]
    warnings = [line for line in said if line.startswith("Warning")]
    # GE's coding scheme is in its files, and no longer in the standard.
    assert len(warnings) == (2 if camera == "ge" else 0), warnings
    assert all("deprecated = <SRT>" in line for line in warnings)


def test_another_matrix_reaches_the_file_and_the_ingest(camera):
    scan = _scan(camera=camera, rows=512, columns=128, pixel_mm=4.8)
    assert scan.counts.shape == (2, 512, 128)
    scintigram = read_dicom(dicom_bytes(scan, AGE))
    assert scintigram.pixel_spacing_mm == 4.8
    np.testing.assert_array_equal([view.native for view in scintigram.views], scan.counts)


def test_counts_beyond_a_signed_pixel_are_written_unsigned(scans):
    counts = scans["ge"].counts.copy()
    counts[1, 500, 100] = 40_000
    content = dicom_bytes(dataclasses.replace(scans["ge"], counts=counts), AGE)
    assert _dataset(content).PixelRepresentation == 0
    assert read_dicom(content).views[1].native[500, 100] == 40_000


def test_the_camera_changes_the_header_and_not_the_image(scans):
    np.testing.assert_array_equal(scans["ge"].counts, scans["siemens"].counts)
    assert dicom_bytes(scans["ge"], AGE) != dicom_bytes(scans["siemens"], AGE)


def test_uids_differ_by_study_patient_seed_and_protocol_and_are_the_same_again(scans):
    scan = scans["ge"]
    others = [
        scan,
        dataclasses.replace(scan, study=1),
        dataclasses.replace(scan, number=NUMBER + 1),
        dataclasses.replace(scan, seed=SEED + 1),
        dataclasses.replace(scan, protocol=dataclasses.replace(scan.protocol, difficulty="hard")),
    ]
    uids = [_uids(dicom_bytes(other, AGE)) for other in others]
    assert uids[0] == _uids(dicom_bytes(scan, AGE))
    assert len(set().union(*uids)) == sum(map(len, uids))
    assert all(uid.is_valid for uid in set().union(*uids))


def _uids(content):
    dataset = _dataset(content)
    names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
    return {dataset[name].value for name in names}
