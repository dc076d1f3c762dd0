"""Nothing of a patient, a hospital or a file's name may reach a data set, a summary or a log."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image, PngImagePlugin

from tfds_builder import build
from tfds_builder.commandline.errors import UserError
from tfds_builder.splits.file import read_splits

CANARY = "Canarybird"
NUMBERS = ("19311123", "87654321", "5550199")


def plant(dataset) -> None:
    """Puts the canary wherever a hospital's file holds something of the patient or the place."""
    dataset.PatientName = f"{CANARY}^Jane"
    dataset.PatientID = f"{CANARY}-7"
    dataset.PatientBirthDate = "19311123"
    dataset.StudyDate = "19871123"
    dataset.AccessionNumber = "5550199"
    dataset.InstitutionName = dataset.StationName = CANARY
    dataset.ReferringPhysicianName = dataset.OperatorsName = CANARY
    dataset.Manufacturer = f"{CANARY} Medical"
    dataset.StudyDescription = f"{CANARY} bone"
    dataset.PatientComments = CANARY
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(dataset, keyword, "1.2.826.0.1.3680043.8.498.87654321")
    dataset.private_block(0x0011, CANARY, create=True).add_new(0x01, "LO", CANARY)
    dataset.add_new(0x60000010, "US", 8)
    dataset.add_new(0x60000011, "US", 8)
    dataset.add_new(0x60000022, "LO", CANARY)
    dataset.add_new(0x60003000, "OW", CANARY.encode() + b"!!")
    # An overlay in the pixels' unused high bits, as older cameras wrote it.
    pixels = np.frombuffer(dataset.PixelData, np.uint16).copy()
    pixels[::7] |= 0x8000
    dataset.PixelData = pixels.tobytes()
    dataset.BitsStored, dataset.HighBit = 12, 11


def write_picture(path: Path, counts: np.ndarray) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", CANARY)
    text.add_itxt("Comment", CANARY)
    Image.fromarray(counts).save(path, pnginfo=text)


@pytest.fixture
def planted(write_dicom, write_manifest, draw_body, tmp_path):
    """A manifest of canaries, and the true counts."""
    rows = []
    counts = {}
    for n in range(5):
        counts[n] = draw_body()
        write_dicom(f"{CANARY}/{CANARY}{n}.dcm", counts=counts[n], change=plant)
        rows.append({"path": f"{CANARY}/{CANARY}{n}.dcm", "study_id": f"{CANARY}{n}"})
    bad = write_dicom(f"{CANARY}/{CANARY}5.dcm", change=plant, ImageType=[CANARY, CANARY, CANARY])
    assert CANARY.encode() in bad.read_bytes()
    torn = write_dicom(f"{CANARY}/{CANARY}6.dcm", change=plant)
    torn.write_bytes(torn.read_bytes()[:-3000])
    write_picture(tmp_path / f"{CANARY}.png", draw_body(1)[0])
    rows += [
        {"path": f"{CANARY}/{CANARY}5.dcm"},
        {"path": f"{CANARY}/{CANARY}6.dcm"},
        {"path": f"{CANARY}/{CANARY}-gone.dcm"},
        {"path": f"{CANARY}.png", "view": "anterior"},
    ]
    for n, row in enumerate(rows):
        row |= {"patient_id": f"{CANARY}-{n}", "label": "normal"}
        row |= {"site": f"{CANARY} General", "comment": CANARY}
    return write_manifest(*rows), counts


def command(module: str, *options: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", f"tfds_builder.{module}", *map(str, options)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def built(planted, tmp_path):
    """A data directory built from canaries, what was printed, and the true counts."""
    manifest, counts = planted
    said = ""
    for config in ("views", "studies"):
        for module, options in (
            ("build", ["--manifest", manifest, "--max_rejected", "0.5"]),
            ("inspect", []),
        ):
            places = ["--config", config, "--data_dir", tmp_path / "data"]
            done = command(module, *places, *options)
            assert done.returncode == 0, done.stderr
            said += done.stdout + done.stderr
    return tmp_path / "data", said, counts


def every_record(data_dir: Path) -> list[dict]:
    records = []
    for config in ("views", "studies"):
        builder = tfds.builder(f"scintigraphy/{config}", data_dir=data_dir)
        for split in builder.info.splits:
            source = builder.as_data_source(split)
            records += [source[n] for n in range(len(source))]
    return records


def assert_no_canary(contents: list[bytes]) -> None:
    for word in (CANARY, *NUMBERS, "19871123", ".dcm", "General"):
        for encoded in (word.encode(), word.encode("utf-16-le")):
            for content in contents:
                assert encoded.lower() not in content.lower(), word


def bytes_of(folder: Path) -> list[bytes]:
    """Names and contents of all files below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = "\n".join(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return [path.read_bytes() for path in files] + [names.encode()]


def test_no_canary_is_in_any_byte_of_the_data_or_of_what_was_printed(built):
    data_dir, said, _ = built
    records = every_record(data_dir)
    assert len(records) > 10
    values = [value for record in records for value in record.values()]
    texts = [value for value in values if isinstance(value, bytes)]
    pixels = [value.tobytes() for value in values if isinstance(value, np.ndarray)]
    assert_no_canary([*bytes_of(data_dir), *texts, *pixels, said.encode()])


@pytest.mark.parametrize(
    "options, change",
    [
        ([], None),
        (["--max_rejected", "0.5", "--strict"], None),
        (["--max_rejected", "0.5"], (f"{CANARY}-1,", f"{CANARY}-0,,{CANARY}")),
        (["--max_rejected", "0.5"], ("normal", f"{CANARY}^Jane")),
        (["--max_rejected", "0.5"], (f"{CANARY}/{CANARY}1", f"../{CANARY}")),
        (["--max_rejected", "0.5"], ("patient_id", CANARY)),
    ],
)
def test_a_build_that_fails_says_and_leaves_nothing_either(planted, tmp_path, options, change):
    manifest, _ = planted
    if change:
        manifest.write_text(manifest.read_text().replace(*change))
    done = command("build", "--manifest", manifest, "--data_dir", tmp_path / "data", *options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    (tmp_path / "data").mkdir(exist_ok=True)
    assert_no_canary([*bytes_of(tmp_path / "data"), (done.stdout + done.stderr).encode()])


def test_a_build_that_is_killed_leaves_nothing_either(planted, tmp_path):
    manifest, _ = planted
    line = [sys.executable, "-m", "tfds_builder.build", "--manifest", manifest]
    process = subprocess.Popen([*line, "--data_dir", tmp_path / "data", "--max_rejected", "0.5"])
    deadline = time.monotonic() + 60
    while not list((tmp_path / "data").rglob("*.array_record*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert_no_canary(bytes_of(tmp_path / "data"))


def test_overlays_in_the_unused_bits_are_not_counts(built):
    data_dir, _, counts = built
    images = {record["image"].tobytes() for record in every_record(data_dir)}
    for views in counts.values():
        for view in views:
            assert view[..., None].tobytes() in images


def test_what_was_left_out_is_said_by_row_and_reason(built):
    data_dir, said, _ = built
    text = (data_dir / "scintigraphy/views/1.1.0/quarantine.csv").read_text()
    assert [line.split(",")[0] for line in text.splitlines()] == ["row", "7", "8", "9"]
    assert "3 of 9 rows cannot be used" in said


def test_the_key_is_private_and_kept_out_of_the_data(cohort, tmp_path):
    manifest = cohort(4)
    inside = tmp_path / "data" / "pseudonym.key"
    places = ["--manifest", str(manifest), "--data_dir", str(tmp_path / "data")]
    with pytest.raises(UserError, match="keep the key elsewhere"):
        build.main([*places, "--pseudonym_key", str(inside)])
    assert not inside.exists()
    build.main(places)
    assert os.stat(tmp_path / "pseudonym.key").st_mode & 0o777 == 0o600


def test_a_patient_has_one_pseudonym_in_all_builds_with_one_key(cohort, tmp_path):
    keys = []
    for name, patients in (("a", 4), ("b", 6)):
        manifest = cohort(patients)
        build.main(["--manifest", str(manifest), "--data_dir", str(tmp_path / name)])
        keys.append(set(read_splits(tmp_path / name / "splits.csv")))
    assert keys[0] < keys[1]
    (tmp_path / "pseudonym.key").unlink()
    build.main(["--manifest", str(cohort(4)), "--data_dir", str(tmp_path / "c")])
    assert not set(read_splits(tmp_path / "c" / "splits.csv")) & keys[1]


def test_the_bytes_of_a_picture_really_hold_the_canary(tmp_path, draw_body):
    write_picture(tmp_path / "x.png", draw_body(1)[0])
    assert CANARY.encode() in (tmp_path / "x.png").read_bytes()
    assert Image.open(io.BytesIO((tmp_path / "x.png").read_bytes())).text["Title"] == CANARY
