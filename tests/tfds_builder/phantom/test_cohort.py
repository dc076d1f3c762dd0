"""A cohort's files: manifest, lesions, protocol, restart, independence of the workers, errors."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from tfds_builder.commandline.errors import UserError
from tfds_builder.phantom import __main__ as command
from tfds_builder.phantom import cohort, sample_case, simulate
from tfds_builder.phantom.camera.protocol import Protocol
from tfds_builder.phantom.cohort import make_cohort, make_patient
from tfds_builder.phantom.writer import FOLDERS

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


def _rows(folder, table="manifest.csv"):
    with (folder / table).open(newline="") as lines:
        return list(csv.DictReader(lines))


def _masks(path):
    with Image.open(path) as pages:
        return np.stack([np.asarray(pages) for _ in _pages(pages)])


def _pages(image):
    for page in range(image.n_frames):
        image.seek(page)
        yield page


def _command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tfds_builder.phantom", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_bytes_do_not_depend_on_the_number_of_workers(finished, tmp_path):
    ran = _command("--out", tmp_path / "two", "--patients", PATIENTS, "--seed", SEED,
                   "--workers", 2)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    assert re.search(rf"{PATIENTS} patients in [\d.]+ s: [\d.]+ patients/s", ran.stdout)
    assert _contents(tmp_path / "two") == _contents(finished)


@pytest.mark.skipif("OTHER_PYTHON" not in os.environ, reason="OTHER_PYTHON names no interpreter")
def test_bytes_do_not_depend_on_the_version_of_python(finished, tmp_path):
    """OTHER_PYTHON=/path/to/python3.12 pytest tests/tfds_builder/phantom/test_cohort.py.

    That interpreter has the same numpy, scipy, pydicom, pillow and rich as this one.
    """
    asked = ("--out", tmp_path / "other", "--patients", PATIENTS, "--seed", SEED)
    command_line = [os.environ["OTHER_PYTHON"], "-m", "tfds_builder.phantom", *map(str, asked)]
    root = Path(__file__).parents[3]
    ran = subprocess.run(command_line, capture_output=True, text=True, timeout=120, cwd=root)
    assert ran.returncode == 0, ran.stderr
    assert _contents(tmp_path / "other") == _contents(finished)


def test_a_patient_is_the_same_in_a_larger_cohort(finished, tmp_path):
    make_cohort(tmp_path / "small", 2, SEED, 1, _silent)
    small, large = _contents(tmp_path / "small"), _contents(finished)
    shared = [name for name in small if name.startswith(("images", "masks", "lesions/"))]
    assert len(shared) >= 2
    assert large["lesions.csv"].startswith(small["lesions.csv"])
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
    assert not (folder / "lesions.csv").exists()
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


@pytest.mark.parametrize("lost", ["images", "masks", "lesions"])
def test_a_lost_file_is_made_again_alone(finished, tmp_path, lost):
    folder = tmp_path / "cohort"
    make_cohort(folder, 3, SEED, 1, _silent)
    before = _contents(folder)
    next(iter((folder / lost).iterdir())).unlink()
    made = make_cohort(folder, 3, SEED, 1, _silent)
    assert made.patients == 1
    assert _contents(folder) == before


def test_a_lost_table_is_written_again_without_a_simulation(tmp_path, monkeypatch):
    folder = tmp_path / "cohort"
    make_cohort(folder, 3, SEED, 1, _silent)
    before = _contents(folder)
    monkeypatch.setattr(cohort, "simulate", None)
    for name in ("lesions.csv", "manifest.csv"):
        (folder / name).unlink()
        assert make_cohort(folder, 3, SEED, 1, _silent).patients == 0
        assert _contents(folder) == before


def test_manifest_names_every_file_and_nothing_else(finished):
    rows = _rows(finished)
    named = {row["path"] for row in rows} | {row["lesion_mask"] for row in rows} - {""}
    tables = {re.sub("masks/(.*)tif", r"lesions/\1csv", name) for name in named if "masks" in name}
    others = {"manifest.csv", "lesions.csv", "phantom.json", "pseudonym.key"}
    assert set(_contents(finished)) == named | tables | others
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


def test_files_and_manifest_name_the_same_patients(finished):
    for row in _rows(finished):
        file = pydicom.dcmread(finished / row["path"])
        assert file.PatientID == row["patient_id"]
        assert (file.PatientSex, int(file.PatientAge[:3])) == (row["sex"], int(row["age"]))


def test_every_number_in_a_mask_has_its_row_of_lesions_csv(finished):
    lesions, marked = _rows(finished, "lesions.csv"), 0
    numbers = {}
    for lesion in lesions:
        numbers.setdefault(lesion["path"], []).append(int(lesion["number"]))
    for row in _rows(finished):
        present = (
            set(np.unique(_masks(finished / row["lesion_mask"]))) if row["lesion_mask"] else {0}
        )
        listed = numbers.pop(row["path"], [])
        assert listed == sorted(set(listed))
        assert present - {0} <= set(listed)
        marked += len(present) - 1
    assert marked >= 5
    assert not numbers


def test_lesions_csv_says_of_each_lesion_what_the_scan_says(finished):
    study = {row["path"]: row for row in _rows(finished)}
    rows = iter(_rows(finished, "lesions.csv"))
    for number in range(PATIENTS):
        for index in range(len(sample_case(SEED, number).dates)):
            for lesion in simulate(SEED, number, index).lesions:
                row = next(rows)
                assert row["path"] == f"images/patient_{number:05d}_study_{index + 1}.dcm"
                of = study[row["path"]]
                for field in ("patient_id", "study_id", "label"):
                    assert row[field] == of[field]
                _assert_row(row, lesion)
    assert next(rows, None) is None


def _assert_row(row, lesion):
    assert int(row["number"]) == lesion.number
    assert [row[name] for name in ("kind", "site", "side")] == [
        lesion.kind, lesion.site, lesion.side,
    ]  # fmt: skip
    assert row["cold"] == str(lesion.cold).lower()
    assert float(row["volume_ml"]) == pytest.approx(lesion.volume_ml, abs=0.001)
    for view, name in enumerate(("anterior", "posterior")):
        assert float(row[f"contrast_{name}"]) == pytest.approx(lesion.contrast[view], abs=1e-3)
        assert float(row[f"snr_{name}"]) == pytest.approx(lesion.snr[view], abs=1e-2)
        assert row[f"visible_{name}"] == str(bool(lesion.visible[view])).lower()


def test_cohorts_of_different_seeds_share_no_patient(finished, tmp_path):
    other = tmp_path / "other"
    make_cohort(other, PATIENTS, SEED + 1, 1, _silent)
    identities = [_identities(finished), _identities(other)]
    assert all(len(found) >= 4 * PATIENTS for found in identities)
    assert not identities[0] & identities[1]
    keys = [(folder / "pseudonym.key").read_text() for folder in (finished, other)]
    assert keys[0] != keys[1]


def _identities(folder):
    """PatientIDs, UIDs and the pixels of both views."""
    found = set()
    for path in _images(folder).values():
        file = pydicom.dcmread(path)
        found |= {file.PatientID, file.StudyInstanceUID, file.SeriesInstanceUID}
        found |= {file.SOPInstanceUID, *(view.tobytes() for view in file.pixel_array)}
    return found


def test_the_protocol_is_recorded_and_reaches_every_file(tmp_path):
    folder = tmp_path / "cohort"
    protocol = ("--difficulty", "hard", "--camera", "siemens", "--collimator", "LEAP",
                "--matrix", "512x128", "--pixel_mm", "4.8", "--speed_mm_s", "3",
                "--activity_mbq", "500", "--uptake_hours", "2.5")  # fmt: skip
    ran = _command("--out", folder, "--patients", 4, "--seed", SEED, "--workers", 2, *protocol)
    assert ran.returncode == 0, ran.stderr
    parameters = json.loads((folder / "phantom.json").read_text())
    assert parameters["protocol"] == {
        "difficulty": "hard", "camera": "siemens", "collimator": "LEAP", "rows": 512,
        "columns": 128, "pixel_mm": 4.8, "speed_mm_s": 3.0, "activity_mbq": 500.0,
        "uptake_hours": 2.5,
    }  # fmt: skip
    for row in _rows(folder):
        file = pydicom.dcmread(folder / row["path"])
        assert "Siemens-like" in file.Manufacturer
        assert (file.Rows, file.Columns, *file.PixelSpacing) == (512, 128, 4.8, 4.8)
        assert file.DetectorInformationSequence[0].CollimatorGridName == "LEAP"
        assert file.ScanVelocity == 3
        assert file.RadiopharmaceuticalInformationSequence[0].RadionuclideTotalDose == 500
        assert file.AcquisitionTime == "113000.00"
        if row["lesion_mask"]:
            assert _masks(folder / row["lesion_mask"]).shape == (2, 512, 128)


def test_both_cameras_are_drawn_and_stay_with_the_patient():
    cameras = [sample_case(SEED, number).camera for number in range(40)]
    assert set(cameras) == {"ge", "siemens"}
    number = next(n for n in range(200) if len(sample_case(SEED, n).dates) > 1)
    assert len({simulate(SEED, number, study).acquisition.camera for study in range(2)}) == 1


def test_pixels_and_masks_on_disk_are_those_of_the_scan(finished):
    number = next(n for n in range(PATIENTS) if sample_case(SEED, n).label != "normal")
    scan = simulate(SEED, number)
    image = pydicom.dcmread(finished / f"images/patient_{number:05d}_study_1.dcm")
    np.testing.assert_array_equal(image.pixel_array, scan.counts)
    masks = _masks(finished / f"masks/patient_{number:05d}_study_1.tif")
    np.testing.assert_array_equal(masks, scan.masks)


def test_all_studies_of_a_patient_are_written(tmp_path):
    number = next(n for n in range(200) if len(sample_case(SEED, n).dates) > 1)
    for part in FOLDERS:
        (tmp_path / part).mkdir()
    make_patient(tmp_path, SEED, number)
    files = [pydicom.dcmread(path) for path in sorted((tmp_path / "images").iterdir())]
    assert len(files) == len(sample_case(SEED, number).dates)
    assert len({file.PatientID for file in files}) == 1
    assert len({file.StudyInstanceUID for file in files}) == len(files)
    assert [file.StudyDate for file in files] == sorted({file.StudyDate for file in files})
    assert len({file.PatientBirthDate for file in files}) == 1


@pytest.mark.parametrize(
    "patients, seed, workers", [(0, 1, 1), (-3, 1, 1), (10**7, 1, 1), (3, -1, 1), (3, 1, 0)]
)
def test_bad_values_are_refused_and_nothing_is_written(tmp_path, patients, seed, workers):
    with pytest.raises(UserError):
        make_cohort(tmp_path / "new", patients, seed, workers, _silent)
    assert not (tmp_path / "new").exists()


def test_a_foreign_folder_or_another_cohort_is_refused_untouched(finished, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="other files"):
        make_cohort(tmp_path, 3, SEED, 1, _silent)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    before = _contents(finished)
    with pytest.raises(UserError, match="other parameters"):
        make_cohort(finished, PATIENTS + 1, SEED, 1, _silent)
    with pytest.raises(UserError, match="other parameters"):
        make_cohort(finished, PATIENTS, SEED + 1, 1, _silent)
    with pytest.raises(UserError, match="other parameters"):
        make_cohort(finished, PATIENTS, SEED, 1, _silent, Protocol(uptake_hours=3.0))
    assert _contents(finished) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["--patients", "x", "--seed", "1"],
        ["--patients", "2", "--seed", "-1"],
        ["--patients", "2"],
        ["--patients", "2", "--seed", "1", "--camera", "philips"],
    ],
)
def test_the_command_fails_with_one_line_and_status_2(tmp_path, arguments):
    ran = _command("--out", tmp_path / "new", *arguments)
    assert ran.returncode == 2
    assert len(ran.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "option, value, named",
    [
        ("--matrix", "1024", "--matrix"),
        ("--matrix", "512x128", "smaller than a patient"),
        ("--matrix", "0x0", "--matrix"),
        ("--difficulty", "extreme", "easy, standard, hard"),
        ("--collimator", "HEGP", "LEHR"),
        ("--pixel_mm", "nan", "--pixel_mm"),
        ("--speed_mm_s", "0", "--speed_mm_s"),
        ("--uptake_hours", "inf", "--uptake_hours"),
        ("--activity_mbq", "much", "--activity_mbq"),
    ],
)
def test_a_protocol_that_no_clinic_has_is_refused(tmp_path, monkeypatch, option, value, named):
    out = ("--out", str(tmp_path / "new"), "--patients", "2", "--seed", "1")
    monkeypatch.setattr(sys, "argv", ["phantom", *out, option, value])
    with pytest.raises(UserError, match=named):
        command.main()
    assert not (tmp_path / "new").exists()


def test_an_output_below_a_file_is_one_line_and_status_2(tmp_path):
    (tmp_path / "file").write_text("")
    ran = _command("--out", tmp_path / "file" / "cohort", "--patients", "1", "--seed", "1")
    assert ran.returncode == 2
    assert len(ran.stderr.strip().splitlines()) == 1
