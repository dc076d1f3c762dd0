"""The phantom's files: DICOM attributes, manifest, restart, independence of the workers, errors."""

import csv
import json
import subprocess
import sys

import numpy as np
import pydicom
import pytest
from PIL import Image

from tfds_builder.errors import DataError
from tfds_builder.phantom import cohort, sample_case, simulate
from tfds_builder.phantom.cohort import make_cohort, make_patient
from tfds_builder.phantom.writer import dicom_bytes

SEED, PATIENTS = 77, 7


def _silent(done, total):
    pass


def _contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom") / "cohort"
    make_cohort(folder, PATIENTS, SEED, 1, _silent)
    return folder


def _rows(folder):
    with (folder / "manifest.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def _command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tfds_builder.phantom", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_bytes_do_not_depend_on_the_number_of_workers(finished, tmp_path):
    ran = _command("--out", tmp_path / "two", "--patients", PATIENTS, "--seed", SEED,
                   "--workers", 2)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert f"{PATIENTS} of {PATIENTS} patients" in ran.stdout
    assert _contents(tmp_path / "two") == _contents(finished)


def test_a_patient_is_the_same_in_a_larger_cohort(finished, tmp_path):
    make_cohort(tmp_path / "small", 2, SEED, 1, _silent)
    small, large = _contents(tmp_path / "small"), _contents(finished)
    shared = [name for name in small if name.startswith(("images", "masks"))]
    assert len(shared) >= 2
    assert all(small[name] == large[name] for name in shared)


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(finished, tmp_path):
    done = []

    def interrupt(made, total):
        done.append(made)
        if made == 3:
            raise KeyboardInterrupt

    folder = tmp_path / "cohort"
    with pytest.raises(KeyboardInterrupt):
        make_cohort(folder, PATIENTS, SEED, 1, interrupt)
    assert not (folder / "manifest.csv").exists()
    kept = {name: path.stat().st_mtime_ns for name, path in _images(folder).items()}
    (folder / "images" / ".patient_00003_study_1.dcm.part").write_bytes(b"half")
    make_cohort(folder, PATIENTS, SEED, 1, lambda made, total: done.append(made))
    assert done[3:] == list(range(4, PATIENTS + 1))
    assert {n: p.stat().st_mtime_ns for n, p in _images(folder).items() if n in kept} == kept
    assert _contents(folder) == _contents(finished)


def _images(folder):
    return {path.name: path for path in (folder / "images").glob("*.dcm")}


def test_a_complete_cohort_is_left_alone(finished, monkeypatch):
    monkeypatch.setattr(cohort, "make_patient", None)
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    assert make_cohort(finished, PATIENTS, SEED, 1, _silent) is None
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


def test_a_lost_file_is_made_again(finished, tmp_path):
    folder = tmp_path / "cohort"
    make_cohort(folder, 3, SEED, 1, _silent)
    before = _contents(folder)
    next(iter(_images(folder).values())).unlink()
    assert make_cohort(folder, 3, SEED, 1, _silent) is not None
    assert _contents(folder) == before


def test_manifest_names_every_file_and_nothing_else(finished):
    rows = _rows(finished)
    named = {row["path"] for row in rows} | {row["lesion_mask"] for row in rows} - {""}
    others = {"manifest.csv", "phantom.json", "pseudonym.key"}
    assert set(_contents(finished)) == named | others
    for row in rows:
        assert (row["label"] == "normal") == (row["lesion_mask"] == "")
    assert list(rows[0]) == [
        "path", "patient_id", "label", "study_id", "sex", "age", "lesion_mask",
    ]  # fmt: skip
    assert len({row["patient_id"] for row in rows}) == PATIENTS
    parameters = json.loads((finished / "phantom.json").read_text())
    assert (parameters["patients"], parameters["seed"]) == (PATIENTS, SEED)
    key = (finished / "pseudonym.key").read_text().strip()
    assert len(bytes.fromhex(key)) == 32


def test_dicom_says_what_it_is(finished):
    for row in _rows(finished):
        file = pydicom.dcmread(finished / row["path"])
        assert file.SOPClassUID == "1.2.840.10008.5.1.4.1.1.20"
        assert file.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
        assert list(file.ImageType) == ["ORIGINAL", "PRIMARY", "WHOLE BODY", "EMISSION"]
        assert (file.NumberOfFrames, file.Rows, file.Columns) == (2, 1024, 256)
        assert [int(tag) for tag in file.FrameIncrementPointer] == [0x00540010, 0x00540020]
        codes = [d.ViewCodeSequence[0].CodeValue for d in file.DetectorInformationSequence]
        assert codes == ["G-5215", "G-5216"]
        assert file.DetectorVector == [1, 2]
        limits = file.EnergyWindowInformationSequence[0].EnergyWindowRangeSequence[0]
        assert limits.EnergyWindowLowerLimit < 140.5 < limits.EnergyWindowUpperLimit
        assert file.CountsAccumulated == int(file.pixel_array.sum(dtype=np.int64))
        assert file.ActualFrameDuration == pytest.approx(
            1000 * file.ScanLength / file.ScanVelocity, rel=0.01
        )
        assert file.PatientID == row["patient_id"]
        assert file.PatientID.startswith("PHANTOM-")
        assert (file.PatientSex, int(file.PatientAge[:3])) == (row["sex"], int(row["age"]))
        assert file.SOPInstanceUID.startswith("2.25.")
        assert file.SOPInstanceUID.is_valid


def test_pixels_and_masks_on_disk_are_those_of_the_scan(finished):
    number = next(n for n in range(PATIENTS) if sample_case(SEED, n).label != "normal")
    scan = simulate(SEED, number)
    image = pydicom.dcmread(finished / f"images/patient_{number:05d}_study_1.dcm")
    np.testing.assert_array_equal(image.pixel_array, scan.counts)
    with Image.open(finished / f"masks/patient_{number:05d}_study_1.tif") as pages:
        assert pages.n_frames == 2
        for page, mask in enumerate(scan.masks):
            pages.seek(page)
            np.testing.assert_array_equal(np.asarray(pages), mask)


def test_uids_differ_between_studies_and_are_the_same_again():
    scans = [simulate(SEED, 0), simulate(SEED, 1), simulate(SEED + 1, 0)]
    files = [dicom_bytes(scan, 50) for scan in scans]
    assert files[0] == dicom_bytes(scans[0], 50)
    uids = [pydicom.dcmread(pydicom.filebase.DicomBytesIO(f)).SOPInstanceUID for f in files]
    assert len(set(uids)) == 3


def test_all_studies_of_a_patient_are_written(tmp_path):
    number = next(n for n in range(200) if len(sample_case(SEED, n).dates) > 1)
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    make_patient(tmp_path, SEED, number)
    files = [pydicom.dcmread(path) for path in sorted((tmp_path / "images").iterdir())]
    assert len(files) == len(sample_case(SEED, number).dates)
    assert len({file.PatientID for file in files}) == 1
    assert len({file.StudyInstanceUID for file in files}) == len(files)
    assert [file.StudyDate for file in files] == sorted({file.StudyDate for file in files})


@pytest.mark.parametrize(
    "patients, seed, workers", [(0, 1, 1), (-3, 1, 1), (10**7, 1, 1), (3, -1, 1), (3, 1, 0)]
)
def test_bad_values_are_refused_and_nothing_is_written(tmp_path, patients, seed, workers):
    with pytest.raises(DataError):
        make_cohort(tmp_path / "new", patients, seed, workers, _silent)
    assert not (tmp_path / "new").exists()


def test_a_foreign_folder_or_another_cohort_is_refused_untouched(finished, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="other files"):
        make_cohort(tmp_path, 3, SEED, 1, _silent)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    before = _contents(finished)
    with pytest.raises(DataError, match="other parameters"):
        make_cohort(finished, PATIENTS + 1, SEED, 1, _silent)
    with pytest.raises(DataError, match="other parameters"):
        make_cohort(finished, PATIENTS, SEED + 1, 1, _silent)
    assert _contents(finished) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["--patients", "x", "--seed", "1"],
        ["--patients", "2", "--seed", "-1"],
        ["--patients", "2"],
    ],
)
def test_the_command_fails_with_one_line_and_status_2(tmp_path, arguments):
    ran = _command("--out", tmp_path / "new", *arguments)
    assert ran.returncode == 2
    assert len(ran.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_an_output_below_a_file_is_one_line_and_status_2(tmp_path):
    (tmp_path / "file").write_text("")
    ran = _command("--out", tmp_path / "file" / "cohort", "--patients", "1", "--seed", "1")
    assert ran.returncode == 2
    assert len(ran.stderr.strip().splitlines()) == 1
