"""Quarantine, quality checks and scans that were exported twice, through the whole builder."""

import csv
import json
import os
import shutil
from pathlib import Path, PurePosixPath

import numpy as np
import pydicom
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw

from tfds_builder import build
from tfds_builder.commandline.errors import UserError
from tfds_builder.readers.dicom import SOURCE_WORDS
from tfds_builder.readers.views import HEAD_DOWN
from tfds_builder.scan.inventory import Chunk, inspect_files
from tfds_builder.splits.file import read_splits

FINAL = Path("scintigraphy", "views", "1.1.0")


def run(manifest: Path, data_dir: Path, *options: str) -> None:
    places = ["--manifest", str(manifest), "--data_dir", str(data_dir)]
    build.main([*places, "--workers", "1", *options])


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def metadata(data_dir: Path) -> dict:
    return tfds.builder("scintigraphy/views", data_dir=data_dir).info.metadata


def add_row(manifest: Path, row: str) -> None:
    with manifest.open("a") as file:
        file.write(row + "\n")


def test_unusable_files_are_quarantined_and_the_rest_is_built(cohort, tmp_path, capsys):
    manifest = cohort(8)
    (tmp_path / "notes.dcm").write_text("no DICOM")
    (tmp_path / "half.dcm").write_bytes((tmp_path / "scans" / "1.dcm").read_bytes()[:-5000])
    for row in ("notes.dcm,X1,normal", "half.dcm,X2,normal", "gone.dcm,X3,normal"):
        add_row(manifest, row)
    run(manifest, tmp_path / "data", "--max_rejected", "0.3")
    rows = table(tmp_path / "data" / FINAL / "quarantine.csv")
    assert [row["row"] for row in rows] == ["10", "11", "12"]
    for row, said in zip(rows, ("not a DICOM file", "truncated", "is not there"), strict=True):
        assert said in row["reason"]
    assert metadata(tmp_path / "data")["rejected_rows"] == 3
    said = capsys.readouterr().out
    assert "3 of 11 rows cannot be used" in said
    assert "not a DICOM file (1x)" in said
    images = sum(
        split["images"] for split in metadata(tmp_path / "data")["split_proof"]["splits"].values()
    )
    assert images == 16


def test_a_data_set_with_quarantined_rows_is_recognised_and_read_again_when_asked(
    cohort, tmp_path, capsys
):
    manifest = cohort(8)
    half = tmp_path / "half.dcm"
    whole = (tmp_path / "scans" / "1.dcm").read_bytes()
    half.write_bytes(whole[:-5000])
    add_row(manifest, "half.dcm,X,normal")
    run(manifest, tmp_path / "data", "--max_rejected", "0.2")
    run(manifest, tmp_path / "data", "--max_rejected", "0.2")
    assert "already built" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--max_rejected is 5 %\); manifest row"):
        run(manifest, tmp_path / "data")
    with pytest.raises(UserError, match="--strict: 0 images with findings and 1 unusable"):
        run(manifest, tmp_path / "data", "--max_rejected", "0.2", "--strict")
    run(manifest, tmp_path / "data", "--max_rejected", "0.2", "--overwrite")
    assert "already built" not in capsys.readouterr().out
    half.write_bytes(whole[:-4000])
    with pytest.raises(UserError, match="other sources"):
        run(manifest, tmp_path / "data", "--max_rejected", "0.2")


def test_a_lesion_mask_that_cannot_be_read_is_another_source_than_none(cohort, tmp_path):
    manifest = cohort(8)
    run(manifest, tmp_path / "data")
    lines = manifest.read_text().splitlines()
    lines = [f"{lines[0]},lesion_mask", f"{lines[1]},none.tif", *(f"{one}," for one in lines[2:])]
    manifest.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="other sources"):
        run(manifest, tmp_path / "data")


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda text: text.replace(",", ";").encode(), "was changed"),
        (lambda text: b"", "was changed"),
        (lambda text: text.encode("utf-16"), "cannot be read"),
    ],
)
def test_a_list_that_a_spreadsheet_saved_anew_is_named(cohort, tmp_path, change, said):
    manifest = cohort(8)
    run(manifest, tmp_path / "data")
    path = tmp_path / "data" / FINAL / "quality.csv"
    path.write_bytes(change(path.read_text()))
    with pytest.raises(UserError, match=rf"quality\.csv: {said}.*; build with --overwrite"):
        run(manifest, tmp_path / "data")


def test_reasons_of_a_fault_that_is_gone_are_gone(cohort, tmp_path):
    manifest = cohort(8)
    run(manifest, tmp_path / "data")
    before = manifest.read_text()
    add_row(manifest, "gone.dcm,X,normal")
    with pytest.raises(UserError, match="cannot be used"):
        run(manifest, tmp_path / "data", "--overwrite")
    assert (tmp_path / "data" / "quarantine.csv").exists()
    manifest.write_text(before)
    run(manifest, tmp_path / "data")
    assert not (tmp_path / "data" / "quarantine.csv").exists()


def test_a_data_set_with_findings_is_not_enough_for_a_strict_build(cohort, tmp_path):
    manifest = cohort(4, CountsAccumulated=5)
    run(manifest, tmp_path / "data")
    with pytest.raises(UserError, match="--strict: 8 images with findings"):
        run(manifest, tmp_path / "data", "--strict")


def test_the_share_of_rejected_rows_is_reckoned_without_rounding(cohort, tmp_path):
    manifest = cohort(71)
    for n in range(29):
        add_row(manifest, f"gone{n}.dcm,X{n},normal")
    run(manifest, tmp_path / "data", "--max_rejected", "0.29")


def test_a_number_in_no_valid_character_set_is_no_fault_of_the_other_files(cohort, tmp_path):
    manifest = cohort(8)
    path = tmp_path / "scans" / "3.dcm"
    dataset = pydicom.dcmread(path)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.add_new(0x00100020, "LO", b"Canary+2AA-zz. ")
    dataset.SpecificCharacterSet = "utf_7"
    dataset.save_as(path)
    run(manifest, tmp_path / "data", "--max_rejected", "0.2")


def test_too_many_unusable_files_leave_the_list_and_no_data_set(cohort, tmp_path):
    manifest = cohort(8)
    add_row(manifest, "gone.dcm,X,normal")
    with pytest.raises(UserError, match=r"1 of 9 rows .* row 10: is not there"):
        run(manifest, tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["quarantine.csv"]
    assert [row["row"] for row in table(tmp_path / "data" / "quarantine.csv")] == ["10"]
    run(manifest, tmp_path / "data", "--max_rejected", "0.2")
    assert not (tmp_path / "data" / "quarantine.csv").exists()


def test_a_failed_build_leaves_the_former_data_set_as_it_was(cohort, tmp_path):
    manifest = cohort(8)
    run(manifest, tmp_path / "data")
    before = {p: p.read_bytes() for p in (tmp_path / "data" / FINAL).iterdir()}
    add_row(manifest, "gone.dcm,X,normal")
    with pytest.raises(UserError, match="cannot be used"):
        run(manifest, tmp_path / "data", "--overwrite")
    assert {p: p.read_bytes() for p in (tmp_path / "data" / FINAL).iterdir()} == before


def test_quality_is_told_of_every_image(cohort, tmp_path):
    run(cohort(3), tmp_path / "data")
    rows = table(tmp_path / "data" / FINAL / "quality.csv")
    assert [(row["row"], row["frame"]) for row in rows] == [
        (str(n), frame) for n in (2, 3, 4) for frame in ("1", "2")
    ]
    for row in rows:
        assert float(row["dispersion"]) == pytest.approx(1, abs=0.1)
        assert row["counts_ratio"] == "1.0000"
        assert row["findings"] == ""


def test_findings_are_notes_and_under_strict_errors(cohort, tmp_path, capsys):
    manifest = cohort(4, CountsAccumulated=5)
    run(manifest, tmp_path / "data")
    assert "counts disagree with CountsAccumulated (8x)" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--strict: 8 images with findings .* row 2: counts"):
        run(manifest, tmp_path / "strict", "--strict")
    assert not (tmp_path / "strict" / "scintigraphy").exists()
    assert len(table(tmp_path / "strict" / "quality.csv")) == 8
    run(cohort(4), tmp_path / "sound", "--strict")


def test_a_flood_is_refused_whatever_its_header_says(write_dicom, write_manifest, tmp_path, rng):
    write_dicom("a.dcm", counts=rng.poisson(9.0, (2, 1024, 256)).astype(np.uint16))
    manifest = write_manifest({"path": "a.dcm", "patient_id": "p", "label": "normal"})
    with pytest.raises(UserError, match="flood or bar phantom"):
        run(manifest, tmp_path / "data")


def findings_of(data_dir: Path) -> dict[tuple[str, str], str]:
    """(row, frame) -> findings."""
    rows = table(data_dir / FINAL / "quality.csv")
    return {(row["row"], row["frame"]): row["findings"] for row in rows}


def test_a_flood_that_a_person_accepts_is_built_and_recorded_as_such(
    write_dicom, write_manifest, tmp_path, rng
):
    write_dicom("a.dcm", counts=rng.poisson(9.0, (2, 1024, 256)).astype(np.uint16))
    row = {"path": "a.dcm", "patient_id": "p", "label": "normal"}
    run(write_manifest(row | {"accept": "yes"}), tmp_path / "data")
    for found in findings_of(tmp_path / "data").values():
        assert "taken by the manifest's 'accept', although it has uniform counts" in found
    with pytest.raises(UserError, match="'yes' in the manifest's 'accept'"):
        run(write_manifest(row | {"accept": "no"}), tmp_path / "other")
    # What the column says decides what is built.
    with pytest.raises(UserError, match="other sources"):
        run(write_manifest(row | {"accept": "no"}), tmp_path / "data")


def test_what_contradicts_the_view_is_a_finding_and_an_error_under_strict(
    write_dicom, write_manifest, tmp_path
):
    def turn(dataset):
        for item, angle in zip(dataset.DetectorInformationSequence, (0, 180), strict=True):
            item.StartAngle = angle

    write_dicom("a.dcm", change=turn)
    write_dicom("b.dcm", views=("anterior",), SeriesDescription="WB POST", PatientID="b")
    rows = [{"path": f"{n}.dcm", "patient_id": n, "label": "normal"} for n in "ab"]
    manifest = write_manifest(*rows)
    run(manifest, tmp_path / "data")
    assert findings_of(tmp_path / "data") == {
        ("2", "1"): "start angle says posterior, coded view anterior",
        ("2", "2"): "start angle says anterior, coded view posterior",
        ("3", "1"): "description text says posterior, coded view anterior",
    }
    with pytest.raises(UserError, match=r"--strict: 3 images .* start angle says posterior"):
        run(manifest, tmp_path / "strict", "--strict")


def test_rows_that_take_two_frames_for_the_same_view_are_findings(
    write_dicom, write_manifest, tmp_path
):
    write_dicom("a.dcm")
    row = {"path": "a.dcm", "patient_id": "p", "label": "normal", "view": "anterior"}
    run(write_manifest(row | {"frame": 1}, row | {"frame": 2}), tmp_path / "data")
    found = findings_of(tmp_path / "data")
    assert all(
        "another frame of the same file is read as the same view" in f for f in found.values()
    )
    assert "coded view says posterior, manifest anterior" in found["3", "2"]


def test_two_frames_that_contradict_themselves_are_settled_by_the_manifest(
    write_dicom, write_manifest, tmp_path
):
    write_dicom("a.dcm", views=("anterior", "anterior"))
    row = {"path": "a.dcm", "patient_id": "p", "label": "normal"}
    with pytest.raises(UserError, match="coded view contradicts itself"):
        run(write_manifest(row), tmp_path / "data")
    rows = [row | {"frame": n, "view": v} for n, v in ((1, "posterior"), (2, "anterior"))]
    run(write_manifest(*rows), tmp_path / "data")
    lines = table(tmp_path / "data" / FINAL / "quality.csv")
    assert [line["view"] for line in lines] == ["posterior", "anterior"]
    assert all("coded view says both" in line["findings"] for line in lines)


def test_a_scan_of_the_folder_comments_on_what_the_build_will_find(write_dicom, tmp_path):
    write_dicom("a.dcm", views=("anterior",), SeriesDescription="WB POST", StudyDescription="QC")
    write_dicom("b.dcm", views=(None,), PatientOrientation=["L", "H"])
    a, b = inspect_files(Chunk(tmp_path, (PurePosixPath("a.dcm"), PurePosixPath("b.dcm"))), print)
    assert a.notes == (SOURCE_WORDS, "description text says posterior, coded view anterior")
    assert b.notes == (HEAD_DOWN,)


def exported_twice(
    cohort, tmp_path: Path, patients: int, copies: dict[int, int], **elements: object
) -> Path:
    """A cohort in which the scan of one patient is also that of another, under its own header."""
    manifest = cohort(patients)
    for original, other in copies.items():
        dataset = pydicom.dcmread(tmp_path / "scans" / f"{original}.dcm")
        dataset.PatientID = f"H-{other}"
        dataset.SOPInstanceUID = f"1.2.3.{other}"
        dataset.save_as(tmp_path / "scans" / f"{other}.dcm")
    return manifest


def split_of(data_dir: Path) -> dict[int, str]:
    """Manifest row -> split."""
    return {int(row["row"]): row["split"] for row in table(data_dir / FINAL / "quality.csv")}


def test_a_scan_exported_under_two_patients_is_found_and_kept_in_one_split(
    cohort, tmp_path, capsys
):
    copies = {0: 4, 1: 13, 2: 22, 3: 31, 5: 18}
    manifest = exported_twice(cohort, tmp_path, 40, copies)
    run(manifest, tmp_path / "data")
    split = split_of(tmp_path / "data")
    assert len(set(split.values())) == 3
    for original, other in copies.items():
        assert split[original + 2] == split[other + 2]
    rows = table(tmp_path / "data" / FINAL / "quality.csv")
    found = {int(r["row"]): int(r["duplicate_of_row"]) for r in rows if r["duplicate_of_row"]}
    expected = {a + 2: b + 2 for a, b in copies.items()}
    assert found == expected | {b: a for a, b in expected.items()}
    assert {row["duplicate_kind"] for row in rows} == {"", "exact copy"}
    said = capsys.readouterr().out
    assert "exact copy of another image under two patients, kept in one split (10x)" in said
    assert "the same scan under two labels" in said
    proof = json.loads((tmp_path / "data" / FINAL / "split_proof.json").read_text())
    assert proof == metadata(tmp_path / "data")["split_proof"]
    assert all(n == 0 for pair in proof["intersections"].values() for n in pair.values())


def test_what_is_written_again_for_duplicates_is_what_a_first_build_would_write(
    cohort, tmp_path, monkeypatch
):
    monkeypatch.setattr("tfds_builder.shards.plan.ROWS_PER_SHARD", 4)
    manifest = exported_twice(cohort, tmp_path, 20, {0: 4, 1: 13, 5: 9})
    run(manifest, tmp_path / "one")
    # With the splits known, nothing has to move.
    (tmp_path / "two").mkdir()
    shutil.copy(tmp_path / "one" / "splits.csv", tmp_path / "two")
    run(manifest, tmp_path / "two")
    for path in (tmp_path / "one" / FINAL).iterdir():
        assert (tmp_path / "two" / FINAL / path.name).read_bytes() == path.read_bytes(), path.name
    run(manifest, tmp_path / "one")


def test_a_scan_in_two_given_splits_is_an_error_that_names_both_rows(cohort, tmp_path):
    manifest = exported_twice(cohort, tmp_path, 4, {0: 1})
    lines = manifest.read_text().splitlines()
    splits = ("split", "train", "test", "", "")
    manifest.write_text("\n".join(f"{a},{b}" for a, b in zip(lines, splits, strict=True)) + "\n")
    with pytest.raises(UserError, match=r"rows [23] and [23] hold the same scan, exported twice"):
        run(manifest, tmp_path / "data")
    assert not (tmp_path / "data" / "scintigraphy").exists()


def renumbered(manifest: Path, numbers: dict[int, str]) -> Path:
    """Gives files of a cohort another PatientID."""
    for n, number in numbers.items():
        path = manifest.parent / "scans" / f"{n}.dcm"
        dataset = pydicom.dcmread(path)
        dataset.PatientID = number
        dataset.save_as(path)
    return manifest


def test_a_hospital_number_under_several_patients_is_a_finding_and_keeps_them_in_one_split(
    cohort, tmp_path, capsys
):
    same = {0: 13, 1: 22, 2: 31, 3: 18, 5: 20, 6: 29}
    manifest = renumbered(cohort(40), {b: f"H-{a}" for a, b in same.items()})
    run(manifest, tmp_path / "data")
    split = split_of(tmp_path / "data")
    assert len(set(split.values())) == 3
    for one, other in same.items():
        assert split[one + 2] == split[other + 2]
    finding = "its DICOM PatientID stands under another patient_id too (kept in one split)"
    found = findings_of(tmp_path / "data")
    assert {int(row) - 2 for (row, _), text in found.items() if text == finding} == {
        *same.keys(), *same.values(),
    }  # fmt: skip
    assert f"note: {finding} (24x)" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--strict: 24 images .* its DICOM PatientID stands"):
        run(manifest, tmp_path / "strict", "--strict")


def test_a_hospital_number_in_two_given_splits_is_an_error_that_names_both_rows(cohort, tmp_path):
    manifest = renumbered(cohort(4), {2: "H-0"})
    lines = manifest.read_text().splitlines()
    splits = ("split", "train", "", "test", "")
    manifest.write_text("\n".join(f"{a},{b}" for a, b in zip(lines, splits, strict=True)) + "\n")
    with pytest.raises(UserError, match=r"rows [24] and [24]: .* share a scan or a DICOM") as error:
        run(manifest, tmp_path / "data")
    assert "H-0" not in str(error.value)


def test_a_number_under_many_patients_is_a_finding_and_no_person(cohort, tmp_path):
    run(cohort(12, PatientID="000"), tmp_path / "data")
    assert len(set(split_of(tmp_path / "data").values())) == 3
    assert {"its DICOM PatientID stands under many patient_ids (a placeholder?)"} == set(
        findings_of(tmp_path / "data").values()
    )


def test_links_to_one_file_are_copies(write_dicom, write_manifest, tmp_path):
    write_dicom("a.dcm")
    rows = []
    for n in range(9):
        os.symlink(tmp_path / "a.dcm", tmp_path / f"link{n}.dcm")
        rows.append({"path": f"link{n}.dcm", "patient_id": n, "label": "normal"})
    run(write_manifest(*rows), tmp_path / "data")
    assert len({split for _, split in read_splits(tmp_path / "data" / "splits.csv").values()}) == 1
    assert metadata(tmp_path / "data")["split_proof"]["splits"]["train"]["images"] in (0, 18)


def test_pictures_with_the_same_lettering_are_not_taken_for_copies(
    draw_body, write_manifest, tmp_path, capsys
):
    rows = []
    for n in range(24):
        counts = draw_body(1)[0]
        picture = Image.fromarray(np.minimum(counts * 8, 255).astype(np.uint8))
        draw = ImageDraw.Draw(picture)
        for line in range(8):
            draw.text((4, 4 + 14 * line), "GENERAL HOSPITAL  WB 1PS", fill=255)
            draw.text((4, 900 + 14 * line), "Tc-99m MDP 740 MBq", fill=200)
        draw.rectangle((1, 1, 254, 1022), outline=255)
        picture.save(tmp_path / f"{n}.png")
        rows.append({"path": f"{n}.png", "patient_id": n, "label": "normal", "view": "anterior"})
    run(write_manifest(*rows), tmp_path / "data")
    assert "copy of another image" not in capsys.readouterr().out
    assert len(set(split_of(tmp_path / "data").values())) == 3


def test_both_views_side_by_side_in_one_picture_are_not_cut_into_halves(
    draw_body, write_manifest, tmp_path
):
    Image.fromarray(np.concatenate(list(draw_body()), axis=1)).save(tmp_path / "a.png")
    manifest = write_manifest({"path": "a.png", "patient_id": "p", "label": "normal"})
    with pytest.raises(UserError, match=r"row 2: is 1024x512, .* side by side"):
        run(manifest, tmp_path / "data")


def test_counts_that_cropping_cuts_off_are_a_finding(
    draw_body, write_dicom, write_manifest, tmp_path
):
    counts = np.pad(draw_body(), ((0, 0), (0, 0), (8, 8)))
    counts[:, 500, 2] = 40
    write_dicom("a.dcm", counts=counts)
    run(write_manifest({"path": "a.dcm", "patient_id": "p", "label": "normal"}), tmp_path / "data")
    for row in table(tmp_path / "data" / FINAL / "quality.csv"):
        assert "cropping cut off counts" in row["findings"]
        assert "matrix 1024x272 cropped to 1024x256" in row["notes"]
