import os
import unicodedata
from pathlib import Path

import pytest

from tfds_builder.commandline.errors import UserError
from tfds_builder.manifest import COLUMNS, read_manifest


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    for name in ("a.dcm", "b.dcm", "c.dcm", "a.tif"):
        (tmp_path / name).write_bytes(name.encode())


def good(name: str = "a.dcm", patient: str = "p1", **cells: object) -> dict[str, object]:
    return {"path": name, "patient_id": patient, "label": "normal", **cells}


def error_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_manifest(path)
    return str(caught.value)


def test_rows_carry_what_the_table_says(write_manifest, tmp_path):
    path = write_manifest(
        good(study_id="s", view="posterior", frame=2, split="test", sex="female", age="057Y"),
        good("b.dcm", "p2", sex="M", age=3, lesion_mask="a.tif"),
    )
    first, second = read_manifest(path)
    assert (first.number, second.number) == (2, 3)
    assert first.path == (tmp_path / "a.dcm").resolve()
    assert (first.view, first.frame, first.split) == ("posterior", 2, "test")
    assert (first.sex, first.age, first.study_id) == ("F", 57, "s")
    assert (second.view, second.frame, second.split, second.study_id) == (None,) * 4
    assert second.lesion_mask == (tmp_path / "a.tif").resolve()


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_spreadsheet_dialects_read_the_same(tmp_path, separator, newline, mark):
    lines = ["path,patient_id,label", "a.dcm,p1,normal", ",,", "b.dcm,p2,arthritis", ""]
    text = mark + newline.join(lines).replace(",", separator)
    path = tmp_path / "m.csv"
    path.write_bytes(text.encode())
    rows = read_manifest(path)
    assert [(row.number, row.relative_path, row.label) for row in rows] == [
        (2, "a.dcm", "normal"),
        (4, "b.dcm", "arthritis"),
    ]


@pytest.mark.parametrize(
    "cells, said",
    [
        (
            {"label": "metastases"},
            ["label 'metastases' looks like 'metastasis' misspelt (1x)", "--classes"],
        ),
        ({"label": ""}, ["label is empty"]),
        ({"patient_id": " "}, ["patient_id is empty"]),
        ({"view": "lateral"}, ["view is not one of anterior, posterior"]),
        ({"frame": "0"}, ["frame is not a whole number from 1 up"]),
        ({"frame": "one"}, ["frame is not a whole number"]),
        ({"frame": "²"}, ["frame is not a whole number"]),
        ({"age": "131"}, ["age is not whole years from 0 to 130"]),
        ({"age": "-1"}, ["age is not whole years"]),
        ({"sex": "w"}, ["sex is not one of F, M, O"]),
        ({"accept": "perhaps"}, ["accept is not one of yes, no"]),
        ({"split": "dev"}, ["split is not one of train, validation, test"]),
        ({"split": "fold_x"}, ["split is not one of"]),
        ({"path": "a\0.dcm"}, ["path is not a usable path"]),
        ({"lesion_mask": "../m.tif"}, ["lesion_mask leaves the manifest's folder"]),
        ({"path": "../other/x.dcm"}, ["leaves the manifest's folder"]),
        ({"path": "/etc/hostname"}, ["leaves the manifest's folder"]),
    ],
)
def test_a_bad_cell_is_named_with_file_row_and_field(write_manifest, cells, said):
    path = write_manifest(good("b.dcm", "p0"), good() | cells)
    message = error_of(path)
    assert message.startswith(f"{path}: row 3")
    assert "\n" not in message
    for text in said:
        assert text in message


def test_messages_repeat_no_path_and_no_patient(write_manifest):
    rows = good("../Doe/x.dcm", "Doe"), good("Doe.dcm", "Doe", label="Doe^Jane")
    assert "Doe" not in error_of(write_manifest(*rows)).replace(str(Path.cwd()), "")
    torn = good("a.dcm", "Doe", split="train"), good("b.dcm", "Doe", split="test")
    assert "Doe" not in error_of(write_manifest(*torn))
    assert "Doe" not in error_of(write_manifest(good("Doe.dcm"), good("Doe.dcm")))
    for field in ("label", "view", "frame", "split", "sex", "age", "accept"):
        assert "Doe" not in error_of(write_manifest(good("a.dcm") | {field: "Doe^Jane"}))
    headless = write_manifest(good("a.dcm"))
    headless.write_text("Doe/1.dcm,Doe,normal\nDoe/2.dcm,Doe,normal\n")
    assert "Doe" not in error_of(headless)


def test_one_patient_in_two_spellings_of_unicode_is_one(write_manifest):
    rows = good("a.dcm", "M\u00fcller"), good("b.dcm", "Mu\u0308ller")
    assert len({row.patient_id for row in read_manifest(write_manifest(*rows))}) == 1


def test_a_file_that_is_not_there_is_left_to_the_reader(write_manifest, tmp_path):
    (row,) = read_manifest(write_manifest(good("gone.dcm", lesion_mask="gone.tif")))
    assert row.path == tmp_path / "gone.dcm"


def test_links_inside_the_folder_are_rows_of_their_own(write_manifest, tmp_path):
    os.symlink(tmp_path / "a.dcm", tmp_path / "link.dcm")
    rows = read_manifest(write_manifest(good(), good("link.dcm", "p2")))
    assert [row.relative_path for row in rows] == ["a.dcm", "link.dcm"]


def test_sites_folds_and_comments_are_understood(write_manifest):
    (row,) = read_manifest(write_manifest(good(site="North", split="fold_3", comment="assumed")))
    assert (row.site, row.split) == ("North", "fold_3")


@pytest.mark.parametrize(
    "cell, meant", [("yes", True), ("TRUE", True), ("1", True), ("No", False), ("", False)]
)
def test_accept_is_a_yes_or_no(write_manifest, cell, meant):
    (row,) = read_manifest(write_manifest(good(accept=cell)))
    assert row.accept is meant
    (silent,) = read_manifest(write_manifest(good()))
    assert silent.accept is False


def test_a_link_that_leads_out_of_the_folder_is_refused(write_manifest, tmp_path):
    outside = tmp_path.parent / f"{tmp_path.name}-outside.dcm"
    outside.write_bytes(b"x")
    os.symlink(outside, tmp_path / "link.dcm")
    assert "leaves the manifest's folder" in error_of(write_manifest(good("link.dcm")))


def test_the_first_fault_is_told_and_the_others_counted(write_manifest):
    rows = good(), good("../x", "p2"), good("b.dcm", "p3", label="?"), good("../y", "p4")
    message = error_of(write_manifest(*rows))
    assert "row 3" in message
    assert "and 2 more errors" in message


@pytest.mark.parametrize("frames", [("", ""), ("", "2"), ("2", ""), ("1", "1")])
def test_one_image_in_two_rows_is_refused(write_manifest, frames):
    path = write_manifest(good(frame=frames[0]), good("./a.dcm", frame=frames[1]))
    assert "row 3: path" in (message := error_of(path))
    assert "row 2" in message


def test_two_frames_of_one_file_are_two_rows(write_manifest):
    assert len(read_manifest(write_manifest(good(frame=1), good(frame=2)))) == 2


def test_a_patient_in_two_splits_is_refused_with_both_rows(write_manifest):
    rows = good(split="train"), good("b.dcm", "p2", split="test"), good("c.dcm", split="test")
    message = error_of(write_manifest(*rows))
    assert "row 4" in message
    assert "row 2" in message


def test_an_unknown_column_is_named_with_what_was_probably_meant(write_manifest):
    message = error_of(write_manifest(good(Lesion_masks="a.tif")))
    assert "row 1: column 4 is unknown; did you mean 'lesion_mask'?" in message
    assert "known are" in error_of(write_manifest(good(zzzz=1)))


def test_a_missing_column_is_named_with_those_present(write_manifest):
    message = error_of(write_manifest({"path": "a.dcm", "label": "normal"}))
    assert "'patient_id' is missing" in message
    assert "path, label" in message


def test_a_column_given_twice_is_refused(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("path,patient_id,label,label\na.dcm,p,normal,arthritis\n")
    assert "'label' occurs twice" in error_of(path)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "empty"),
        (b" \n\n", "empty"),
        (b"path,patient_id,label\n", "no rows"),
        ("path,patient_id,label\n".encode("utf-16"), "no rows"),
        ("path,patient_id,label\n".encode("utf-16-be"), "UTF-8"),
        (b"path,patient_id,label\na.dcm,p\xe9,normal\n", "UTF-8"),
        (b"path,patient_id,label\na.dcm,p,normal,x\n", "row 2: has 4 cells"),
        (b'path,patient_id,label\n"a.dcm,p,normal\n', "not valid CSV"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, content, said):
    path = tmp_path / "m.csv"
    path.write_bytes(content)
    message = error_of(path)
    assert message.startswith(str(path))
    assert said in message


def test_a_missing_manifest_is_named(tmp_path):
    assert "no such file" in error_of(tmp_path / "none.csv")
    assert "is a folder" in error_of(tmp_path)


def test_every_column_is_known_to_the_row(write_manifest):
    cells = dict.fromkeys(COLUMNS, "") | good()
    (row,) = read_manifest(write_manifest(cells))
    assert (row.age, row.sex, row.view, row.lesion_mask) == (None,) * 4


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_a_file_is_found_in_either_spelling_of_its_accents(
    write_manifest, tmp_path, on_disk, written
):
    name = "M\u00fcller Klinik/\u00c5ngstr\u00f6m/\ud55c.dcm"
    path = tmp_path / unicodedata.normalize(on_disk, name)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    cells = {"lesion_mask": unicodedata.normalize(written, name)}
    (row,) = read_manifest(write_manifest(good(unicodedata.normalize(written, name), **cells)))
    assert row.path == path
    assert row.lesion_mask == path
    assert row.relative_path == unicodedata.normalize("NFC", name)


def test_two_files_whose_names_differ_in_spelling_alone_stay_two(write_manifest, tmp_path):
    names = [unicodedata.normalize(form, "\u00fc.dcm") for form in ("NFC", "NFD")]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    rows = read_manifest(write_manifest(*(good(name) for name in names)))
    assert [row.path.read_bytes().decode() for row in rows] == names


def test_a_name_in_another_spelling_may_not_lead_out_of_the_folder(write_manifest, tmp_path):
    outside = tmp_path.parent / f"{tmp_path.name}-outside.dcm"
    outside.write_bytes(b"x")
    os.symlink(outside, tmp_path / unicodedata.normalize("NFD", "\u00fc.dcm"))
    assert "leaves the manifest's folder" in error_of(write_manifest(good("\u00fc.dcm")))


@pytest.mark.parametrize("written", ["123", "0123", "123.0"])
def test_one_number_with_and_without_zeros_is_refused_with_both_rows(write_manifest, written):
    message = error_of(write_manifest(good(patient="00123"), good("b.dcm", written)))
    assert "row 3: patient_id differs from that of row 2 in zeros, capitals" in message
    assert "123" not in message.rpartition("manifest.csv")[2]


@pytest.mark.parametrize("written", ["p-7a", "P7a", "P 7A", "p_7_a.", "P-7-A"])
def test_one_patient_in_two_spellings_is_refused_with_both_rows(write_manifest, written):
    message = error_of(write_manifest(good(patient="P-7A"), good("b.dcm", written)))
    assert "row 3: patient_id differs from that of row 2 in zeros, capitals, spaces" in message
    assert "7" not in message.rpartition("manifest.csv")[2]


@pytest.mark.parametrize("patients", [("1-11", "11 - 1", "111"), ("P7", "P70", "Q7")])
def test_numbers_that_a_sign_divides_otherwise_are_other_patients(write_manifest, patients):
    rows = map(good, ("a.dcm", "b.dcm", "c.dcm"), patients)
    assert len(read_manifest(write_manifest(*rows))) == 3


@pytest.mark.parametrize("field", ["patient_id", "study_id"])
@pytest.mark.parametrize("value", ["1.2E+11", "1E+05", "1,23457E+18"])
def test_a_number_that_a_spreadsheet_shortened_is_refused(write_manifest, field, value):
    assert f"row 2: {field} is a number that a spreadsheet" in error_of(
        write_manifest(good() | {field: value})
    )


def test_values_that_mean_unknown_are_unknown(write_manifest):
    unknown = dict.fromkeys(("study_id", "view", "frame", "split", "site", "sex", "age"), "nan")
    (row,) = read_manifest(write_manifest(good(**unknown, lesion_mask="#N/A")))
    assert (row.study_id, row.view, row.frame, row.split) == (None,) * 4
    assert (row.site, row.sex, row.age, row.lesion_mask) == (None,) * 4
    for field in ("patient_id", "label"):
        message = error_of(write_manifest(good() | {field: "?"}))
        assert f"row 2: {field} says that it is unknown" in message


def test_whole_numbers_may_have_the_decimals_of_a_column_with_gaps(write_manifest):
    (row,) = read_manifest(write_manifest(good(age="57.0", frame="2.0")))
    assert (row.age, row.frame) == (57, 2)


def test_backslashes_between_folders_are_understood_where_no_name_has_them(
    write_manifest, tmp_path
):
    (tmp_path / "scans").mkdir()
    for name in ("scans/a.dcm", "b\\c.dcm"):
        (tmp_path / name).write_bytes(b"x")
    rows = read_manifest(write_manifest(good("scans\\a.dcm"), good("b\\c.dcm", "p2")))
    assert [row.relative_path for row in rows] == ["scans/a.dcm", "b\\c.dcm"]
    assert "leaves the manifest's folder" in error_of(write_manifest(good("..\\other\\a.dcm")))
