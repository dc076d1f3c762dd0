"""A manifest that a spreadsheet has changed, built again: no patient moves in silence."""

import csv
from pathlib import Path

import pytest

from tfds_builder import build
from tfds_builder.commandline.errors import UserError
from tfds_builder.manifest import read_manifest
from tfds_builder.shards.plan import Options, plan_data_set, rows_to_ask
from tfds_builder.splits.file import read_splits

KEY = bytes(range(32))
IDS = [f"{n:06d}" for n in (101, 102, 103, 7, 20, 123456, 654321, 99)]


def rows_of(ids, **cells) -> list[dict[str, object]]:
    labels = ("normal", "metastasis")
    return [
        {"path": f"{n}.dcm", "patient_id": patient, "label": labels[n % 2]} | cells
        for n, patient in enumerate(ids)
    ]


def plan(manifest: Path, known):
    return plan_data_set(manifest, read_manifest(manifest), KEY, known, Options())


def known_after(manifest: Path) -> dict[str, tuple[str, str]]:
    first = plan(manifest, {})
    return {p: (first.labels[p], split) for p, split in first.assign().items()}


def split_of_rows(a_plan) -> dict[int, str]:
    assigned = a_plan.assign()
    return {s.rows[0].number: assigned[s.patient_key] for s in a_plan.studies}


@pytest.mark.parametrize(
    "before, after",
    [
        (str, lambda patient: str(int(patient))),
        (lambda patient: str(int(patient)), str),
        (str, lambda patient: f"{int(patient)}.0"),
        (lambda patient: f"{int(patient)}.0", str),
        (str, lambda patient: f"{int(patient):010d}"),
        (str, str),
    ],
)
def test_a_number_is_the_same_patient_with_other_zeros(write_manifest, before, after):
    first = write_manifest(*rows_of(map(before, IDS)), name="first.csv")
    known = known_after(first)
    again = plan(write_manifest(*rows_of(map(after, IDS))), known)
    assert split_of_rows(again) == split_of_rows(plan(first, known))
    assert set(again.labels) == set(known)
    changed = [n for n, one in enumerate(IDS, start=2) if before(one) != after(one)]
    assert list(again.recognised) == changed


def test_other_patients_are_not_taken_for_known_ones(write_manifest):
    known = known_after(write_manifest(*rows_of(["00101", "P7"]), name="first.csv"))
    again = plan(write_manifest(*rows_of(["101", "1010", "7", "P07", "00P7"])), known)
    assert again.recognised == (2,)
    assert len(again.labels.keys() - known.keys()) == 4


def test_a_number_that_may_be_two_known_patients_is_refused(write_manifest):
    known = known_after(write_manifest(*rows_of(["007"]), name="a.csv"))
    known |= known_after(write_manifest(*rows_of(["0007"]), name="b.csv"))
    with pytest.raises(UserError, match="row 3: patient_id may be any of 2 patients") as caught:
        plan(write_manifest(*rows_of(["5", "7"])), known)
    assert "\n" not in str(caught.value)


def test_a_rebuild_says_whose_numbers_changed_and_moves_nobody(
    write_dicom, write_manifest, tmp_path, capsys
):
    for n, patient in enumerate(IDS[:4]):
        write_dicom(f"{n}.dcm", PatientID=patient)
    places = ["--data_dir", str(tmp_path / "data"), "--workers", "1", "--manifest"]
    build.main([*places, str(write_manifest(*rows_of(IDS[:4])))])
    before = read_splits(tmp_path / "data" / "splits.csv")
    manifest = write_manifest(*rows_of(str(int(one)) for one in IDS[:4]))
    capsys.readouterr()
    build.main([*places, str(manifest)])
    said = capsys.readouterr().out
    assert "note: rows 2, 3, 4, 5: patient_id differs from an earlier build" in said
    assert "already built from these sources" in said
    assert read_splits(tmp_path / "data" / "splits.csv") == before


def test_zeros_lost_before_the_first_build_are_a_note_of_every_image(
    write_dicom, write_manifest, tmp_path, capsys
):
    for n, patient in enumerate(("00101", "P7", "5")):
        write_dicom(f"{n}.dcm", PatientID=patient)
    manifest = write_manifest(*rows_of(["101", "7", "5"]))
    build.main(
        ["--data_dir", str(tmp_path / "data"), "--workers", "1", "--manifest", str(manifest)]
    )
    note = "patient_id lacks the zeros of the file's PatientID: a spreadsheet may have dropped them"
    assert f"note: {note} (2x)" in capsys.readouterr().out
    (quality,) = (tmp_path / "data").rglob("quality.csv")
    with quality.open() as file:
        assert {row["row"] for row in csv.DictReader(file) if note in row["notes"]} == {"2"}


@pytest.mark.parametrize("change", ["M{}", "{}-Dec", "study-{}"])
def test_a_changed_patient_id_is_recognised_by_the_number_in_the_file(
    write_dicom, write_manifest, tmp_path, capsys, change
):
    ids = [f"10-{n}" for n in range(12, 16)]
    for n, patient in enumerate(ids):
        write_dicom(f"{n}.dcm", PatientID=patient)
    places = ["--data_dir", str(tmp_path / "data"), "--workers", "1", "--manifest"]
    build.main([*places, str(write_manifest(*rows_of(ids)))])
    before = read_splits(tmp_path / "data" / "splits.csv")
    changed = [*ids[:2], *(change.format(one) for one in ids[2:])]
    capsys.readouterr()
    build.main([*places, str(write_manifest(*rows_of(changed)))])
    said = capsys.readouterr().out
    assert "note: rows 4, 5: patient_id differs from an earlier build" in said
    assert read_splits(tmp_path / "data" / "splits.csv") == before


def test_files_of_one_number_are_not_one_patient_for_it(write_manifest):
    known = known_after(write_manifest(*rows_of(["ANON"]), name="first.csv"))
    manifest = write_manifest(*rows_of(["a", "b"]))
    both = plan_data_set(
        manifest, read_manifest(manifest), KEY, known, Options(), {2: "ANON", 3: "ANON"}
    )
    assert both.recognised == ()
    one = plan_data_set(
        manifest, read_manifest(manifest), KEY, known, Options(), {2: "ANON", 3: ""}
    )
    assert one.recognised == (2,)


def test_files_are_asked_only_where_patients_are_missing(write_manifest):
    known = known_after(write_manifest(*rows_of(["a", "b"]), name="first.csv"))
    grown = read_manifest(write_manifest(*rows_of(["a", "b", "c"])))
    assert rows_to_ask(grown, KEY, known) == ()
    changed = read_manifest(write_manifest(*rows_of(["a", "c"])))
    assert [row.number for row in rows_to_ask(changed, KEY, known)] == [3]
    assert rows_to_ask(changed, KEY, {}) == ()
