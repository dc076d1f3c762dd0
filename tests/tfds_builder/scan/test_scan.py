import csv
import io
import os
import random
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tfds_builder.commandline.errors import UserError
from tfds_builder.manifest import read_manifest
from tfds_builder.readers.dicom import read_header
from tfds_builder.scan import __main__ as scan
from tfds_builder.scan import inventory
from tfds_builder.scan.inventory import Chunk, inspect_files
from tfds_builder.workers import Lost

PICTURE = (64, 24)


@pytest.fixture(autouse=True)
def _light_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers do not import pytest, the main module, at every start."""
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", None, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scans").mkdir()
    return tmp_path / "scans"


@pytest.fixture
def draw(folder: Path, rng: np.random.Generator) -> Callable[..., None]:
    """Writes small pictures under the names given."""

    def write(*names: str, dtype: type = np.uint8, shape: tuple[int, int] = PICTURE) -> None:
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            highest = np.iinfo(dtype).max
            Image.fromarray(rng.integers(0, highest, shape).astype(dtype)).save(path)

    return write


def run(folder: Path, *options: object, out: str = "manifest.csv") -> list[dict[str, str]]:
    """Scans with one worker; the rows of the manifest."""
    place = folder / out
    scan.main([str(folder), "--out", str(place), "--workers", "1", *map(str, options)])
    return rows_of(place)


def rows_of(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8"))))


def columns(rows: list[dict[str, str]], *names: str) -> list[tuple[str, ...]]:
    return [tuple(row[name] for name in names) for row in rows]


def error_of(folder: Path, *options: object, **places: str) -> str:
    with pytest.raises(UserError) as caught:
        run(folder, *options, **places)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_dicom_folder_becomes_a_manifest(write_dicom, folder, capsys):
    write_dicom("scans/a.dcm", PatientID="H-1", StudyInstanceUID="1.2.1")
    one = {"PatientID": "H-2", "StudyInstanceUID": "1.2.2"}
    write_dicom("scans/b/one", views=("posterior",), **one)
    write_dicom("scans/b/two_ant.dcm", views=(None,), **one)
    write_dicom("scans/c_ant.dcm", views=(None,), PatientID="")
    write_dicom("scans/d.dcm", views=(None, None), PatientID="H-4")
    write_dicom("scans/e_ant.dcm", views=("posterior",), PatientID="H-5")
    write_dicom("scans/f.dcm", views=(None,), PatientID="H-6")
    rows = run(folder)
    assert columns(rows, "path", "patient_id", "study_id", "view", "label", "sex", "age") == [
        ("a.dcm", "H-1", "1.2.1", "", "", "", ""),
        ("b/one", "H-2", "1.2.2", "", "", "", ""),
        ("b/two_ant.dcm", "H-2", "1.2.2", "anterior", "", "", ""),
        ("c_ant.dcm", "c", "c", "anterior", "", "", ""),
        ("d.dcm", "H-4", "d", "", "", "", ""),
        ("e_ant.dcm", "H-5", "e", "", "", "", ""),
        ("f.dcm", "H-6", "f", "", "", "", ""),
    ]
    assert columns(rows, "comment") == [
        ("",),
        ("",),
        ("view from the file name",),
        ("patient from the file name; view from the file name",),
        ("view assumed from detector order: detector 1 anterior, detector 2 posterior",),
        ("its path says anterior, its header posterior",),
        ("view unknown: fill in view",),
    ]
    said = capsys.readouterr().out
    assert "view by coded view (4x)" in said
    assert "view by detector order (2x)" in said
    assert "no view (1x)" in said
    assert "7 rows, 7 files, 6 patients" in said
    assert "fill in label (7 rows), look through its column comment" in said


def test_a_patient_id_that_no_file_can_hold_names_no_patient(write_dicom, folder, monkeypatch):
    write_dicom("scans/seven_ant.dcm")
    content = (folder / "seven_ant.dcm").read_bytes()
    header = replace(read_header(content), patient_id="Canary\ud800zz.", study="1.2\udc80")
    monkeypatch.setattr(inventory, "read_header", lambda content, accept: header)
    # In this process, where the header is as it is set above.
    monkeypatch.setattr(
        scan.WorkerPool,
        "map",
        lambda pool, function, tasks, retry: (function(task, lambda step: None) for task in tasks),
    )
    (row,) = run(folder)
    assert (row["patient_id"], row["study_id"]) == ("seven", "seven")
    said = "PatientID cannot be decoded (its character set?), so it is not used"
    assert row["comment"].startswith(f"patient from the file name; {said}")


def test_a_patient_id_in_an_odd_character_set_does_not_end_the_scan(write_dicom, draw, folder):
    path = write_dicom(
        "scans/odd.dcm", SpecificCharacterSet="ISO_IR 100", PatientID="Canary+2AA-zz."
    )
    path.write_bytes(path.read_bytes().replace(b"ISO_IR 100", b"utf_7     "))
    draw("good.png")
    assert "good.png" in {row["path"] for row in run(folder)}


def test_the_builder_takes_the_manifest_once_labels_are_there(write_dicom, draw, folder):
    write_dicom("scans/a.dcm", PatientID="H-1")
    draw("ant/7.png", "post/7.png")
    table = folder.parent / "labels.csv"
    table.write_text("patient_id;label\nH-1;arthritis\n7;Normal\n")
    run(folder, "--labels", table)
    rows = read_manifest(folder / "manifest.csv")
    assert [(row.relative_path, row.patient_id, row.label, row.view) for row in rows] == [
        ("a.dcm", "H-1", "arthritis", None),
        ("ant/7.png", "7", "normal", "anterior"),
        ("post/7.png", "7", "normal", "posterior"),
    ]
    assert all(row.path.is_file() for row in rows)
    assert rows[1].study_id == rows[2].study_id


def test_bs_80k(draw, folder, capsys):
    draw("wholeBodyANT/1.jpg", "wholeBodyANT/2.jpg", "wholeBodyPOST/1.jpg", "wholeBodyPOST/2.jpg")
    (folder / "wholeBodyANT.txt").write_text("1.jpg 0\n2.jpg 1\n")
    (folder / "wholeBodyPOST.txt").write_text("1.jpg 0\n2.jpg 0\n3.jpg 1\n")
    tables = [folder / "wholeBodyANT.txt", folder / "wholeBodyPOST.txt"]
    labels = ["--labels", tables[0], "--labels", tables[1], "--label_map", "0=normal", "1=abnormal"]
    rows = run(folder, *labels)
    assert columns(rows, "path", "patient_id", "label", "study_id", "view") == [
        ("wholeBodyANT/1.jpg", "1", "normal", "wholeBody/1", "anterior"),
        ("wholeBodyANT/2.jpg", "2", "abnormal", "wholeBody/2", "anterior"),
        ("wholeBodyPOST/1.jpg", "1", "normal", "wholeBody/1", "posterior"),
        ("wholeBodyPOST/2.jpg", "2", "normal", "wholeBody/2", "posterior"),
    ]
    assert len(read_manifest(folder / "manifest.csv")) == 4
    said = capsys.readouterr().out
    assert "labels: normal 3, abnormal 1" in said
    assert "wholeBodyPOST.txt: 1 entries name none of these files" in said
    assert "passed over: 2 files that are no images, by their names" in said


def test_zenodo_13900966(draw, folder):
    for kind in ("Metastatic", "Normal"):
        for n in (1, 2):
            names = f"{kind}/Anterior/A{n}.png", f"{kind}/Posterior/P{n}.png"
            draw(*names, dtype=np.uint16)
    pattern = (
        r"(?P<patient_1>(?P<label>[^/]+))/(?P<view>Anterior|Posterior)/[AP](?P<patient_2>\d+)\.png"
    )
    rows = run(folder, "--pattern", pattern, "--label_map", "Metastatic=metastasis")
    assert columns(rows, "path", "patient_id", "label", "study_id", "view")[::3] == [
        ("Metastatic/Anterior/A1.png", "Metastatic/1", "metastasis", "Metastatic/1", "anterior"),
        ("Metastatic/Posterior/P2.png", "Metastatic/2", "metastasis", "Metastatic/2", "posterior"),
        ("Normal/Posterior/P1.png", "Normal/1", "normal", "Normal/1", "posterior"),
    ]
    assert {row["comment"] for row in rows} == {""}
    assert len(read_manifest(folder / "manifest.csv")) == 8


def test_names_that_recur_in_several_folders_name_no_patient(draw, folder, capsys):
    draw("2019/ant/1.png", "2019/post/1.png", "2020/ant/1.png", "2020/ant/2.png")
    rows = run(folder)
    assert columns(rows, "patient_id", "study_id", "comment") == [
        ("", "2019/1", "its name recurs in several folders: fill in patient_id; "
         "view from the folder name"),
        ("", "2019/1", "its name recurs in several folders: fill in patient_id; "
         "view from the folder name"),
        ("", "2020/1", "its name recurs in several folders: fill in patient_id; "
         "view from the folder name"),
        ("2", "2020/2", "patient from the file name; view from the folder name"),
    ]  # fmt: skip
    assert "names recur in several folders" in capsys.readouterr().out
    rows = run(folder, "--pattern", r"(?P<patient>\d+)\.png$", "--overwrite")
    assert [row["patient_id"] for row in rows] == ["1", "1", "1", "2"]


def test_anonymised_files_of_one_patient_id_are_pointed_out(write_dicom, folder, capsys):
    for n in range(3):
        write_dicom(f"scans/{n}.dcm", PatientID="DEID", StudyInstanceUID=f"1.{n}")
    run(folder)
    assert "3 DICOM files of several studies carry the same PatientID" in capsys.readouterr().out


def test_each_page_of_a_picture_is_a_row(folder, rng):
    pages = [Image.fromarray(rng.integers(0, 99, PICTURE).astype(np.uint8)) for _ in range(3)]
    pages[0].save(folder / "two.tif", save_all=True, append_images=pages[1:2])
    pages[0].save(folder / "three.tif", save_all=True, append_images=pages[1:])
    rows = run(folder, "--unread", folder / "unread.csv")
    assert columns(rows, "path", "frame", "view") == [("two.tif", "1", ""), ("two.tif", "2", "")]
    assert rows[1]["comment"].endswith("view unknown: fill in view; page 2 of 2")
    assert rows_of(folder / "unread.csv") == [
        {"path": "three.tif", "reason": "has 3 pages, not one or two views"}
    ]


def test_files_that_are_no_scans_are_listed_and_what_cannot_be_one_is_counted(
    draw, write_dicom, folder, capsys
):
    draw("good.png", ".hidden/x.png", ".y.png")
    draw("wide.png", shape=PICTURE[::-1])
    for name in ("note.txt", "table.CSV", "DICOMDIR", "report.pdf", "pseudonym.key"):
        (folder / name).write_text("nothing")
    for n in range(25):
        (folder / f"junk{n:02}").write_bytes(bytes(n))
    write_dicom("scans/ct.dcm", SOPClassUID="1.2.840.10008.5.1.4.1.1.2", Modality="CT")
    os.mkfifo(folder / "pipe")
    rows = run(folder, "--unread", folder / "unread.csv")
    assert [row["path"] for row in rows] == ["good.png"]
    said = capsys.readouterr().out
    assert "cannot be used: 27 files" in said
    assert "  ct.dcm: " in said
    assert "... and 7 more" in said
    assert "passed over: 5 files that are no images, by their names" in said
    assert "passed over: 2 hidden" in said
    assert "passed over: 1 not plain files" in said
    unread = rows_of(folder / "unread.csv")
    assert len(unread) == 27
    assert "wider than high" in unread[-1]["reason"]


def test_links_that_lead_out_are_not_followed(draw, folder, capsys):
    draw("a.png")
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "b.png").write_bytes((folder / "a.png").read_bytes())
    store = folder / ".store"
    store.mkdir()
    (store / "c").write_bytes((folder / "a.png").read_bytes())
    links = {"out.png": outside / "b.png", "folder": outside, "again.png": folder / "a.png"}
    links |= {"c.png": store / "c", "gone.png": folder / "none", "loop": folder / "loop"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    rows = run(folder)
    assert [row["path"] for row in rows] == ["a.png", "c.png"]
    said = capsys.readouterr().out
    assert "passed over: 2 links that lead out of the folder" in said
    assert "  folder\n" in said
    assert "  out.png\n" in said
    assert "passed over: 1 links to folders, or to files that are here anyway" in said
    assert "gone.png: is not there" in said


def test_names_that_a_manifest_cannot_hold_are_listed(draw, folder, capsys):
    draw("good.png")
    content = (folder / "good.png").read_bytes()
    names = (b"latin\xe4.png", b" space.png", b"line\nbreak.png", b"\x1b[31mred.png", b"'19.png")
    for name in names:
        (Path(os.fsdecode(bytes(folder) + b"/" + name))).write_bytes(content)
    assert [row["path"] for row in run(folder)] == ["good.png"]
    said = capsys.readouterr().out
    assert "cannot be used: 5 files" in said
    assert "\x1b" not in said
    assert "latin?.png: its name is not UTF-8" in said


def test_odd_names_come_through(draw, folder):
    names = ['a,b;c".png', "naïve 患者.png", "x" * 200 + ".png", "-dash.png", "#hash.png"]
    draw(*names)
    for name in names:
        (folder / name).rename(folder / f"{name[:-4]} normal.png")
    run(folder, "--pattern", r"^(?P<patient>.*) (?P<label>\w+)\.png$")
    rows = read_manifest(folder / "manifest.csv")
    assert sorted(row.patient_id for row in rows) == sorted(name[:-4] for name in names)
    assert all(row.path.is_file() for row in rows)


def test_the_manifest_may_lie_above_the_folder(draw, folder):
    draw("ant/1.png")
    (row,) = run(folder, out="../manifest.csv")
    assert row["path"] == "scans/ant/1.png"


def test_relative_places_mean_the_same(draw, folder, monkeypatch):
    draw("ant/1.png")
    monkeypatch.chdir(folder.parent)
    scan.main(["scans", "--out", "manifest.csv", "--workers", "1"])
    assert [row["path"] for row in rows_of(folder.parent / "manifest.csv")] == ["scans/ant/1.png"]


def test_bad_input_ends_in_one_line(draw, folder, tmp_path):
    assert "holds no file that may be an image" in error_of(folder)
    draw("ant/1.png", "ant/2.png")
    assert "may not leave its folder" in error_of(folder, out="ant/manifest.csv")
    assert "its folder is not there" in error_of(folder, out="none/manifest.csv")
    assert "is a folder" in error_of(folder, out="ant")
    assert "no such folder" in error_of(tmp_path / "none", out="../m.csv")
    assert "is a file, not a folder" in error_of(folder / "ant/1.png", out="../m.csv")
    assert "not a regular expression" in error_of(folder, "--pattern", "(")
    assert "matches none of 2 files; the first is 'ant/1.png'" in error_of(
        folder, "--pattern", "(?P<patient>X)"
    )
    assert "--label_map 'x=1'" in error_of(folder, "--label_map", "x=1")
    table = tmp_path / "labels.txt"
    table.write_text("1.png 7\n")
    message = error_of(folder, "--labels", table)
    assert "row 1: label '7' is no name of a class" in message
    assert "no such file" in error_of(folder, "--labels", tmp_path / "none.txt")
    assert "--workers: '0' is no number from 1 on" in error_of(folder, "--workers", "0")
    assert not (folder / "manifest.csv").exists()


def test_what_is_written_may_not_be_what_is_read(draw, folder, tmp_path):
    draw("ant/1.png")
    table = folder / "labels.csv"
    table.write_text("1.png,normal\n")
    read = ("--labels", table, "--overwrite")
    assert "--out and --labels are one file" in error_of(folder, *read, out="labels.csv")
    assert "--unread and --labels are one file" in error_of(
        folder, *read, "--unread", folder / "ant" / ".." / "labels.csv"
    )
    assert "--out and --unread are one file" in error_of(
        folder, "--overwrite", "--unread", folder / "manifest.csv"
    )
    assert table.read_text() == "1.png,normal\n"


def test_a_label_map_for_labels_that_do_not_occur_is_noted(draw, folder, capsys):
    draw("0/1_ant.png", "1/2_ant.png")
    pattern = ("--pattern", "(?P<label>[^/]+)/")
    run(folder, *pattern, "--label_map", "0=normal", "1=abnormal")
    assert "matches no label" not in capsys.readouterr().out
    run(folder, *pattern, "--overwrite", "--label_map", "0=normal", "1=abnormal", "Foo=x ray")
    said = " ".join(capsys.readouterr().out.split())
    assert "note: --label_map 'foo=x_ray' matches no label" in said


def test_a_folder_without_a_usable_file_gives_no_manifest(folder, capsys):
    (folder / "junk").write_bytes(random.Random(1).randbytes(500))
    assert "none of its files can be used" in error_of(folder)
    assert "  junk: " in capsys.readouterr().out
    assert not (folder / "manifest.csv").exists()


def test_an_existing_manifest_is_kept_unless_told_otherwise(draw, folder):
    draw("ant/1.png")
    first = run(folder)
    draw("ant/2.png")
    assert "is there already; use --overwrite" in error_of(folder)
    assert rows_of(folder / "manifest.csv") == first
    assert len(run(folder, "--overwrite")) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["ant", "manifest.csv"]


def test_files_may_be_left_out(draw, folder, capsys):
    draw("a/1.png", "a/2.png", "b/3.png")
    table = folder / "labels.txt"
    table.write_text("1.png 0\n2.png unsure\n3.png 0\n")
    labels = ["--labels", table, "--label_map", "0=normal", "unsure="]
    rows = run(folder, *labels, "--pattern", r"^a/(?P<patient>\d)")
    assert columns(rows, "path", "label") == [("a/1.png", "normal")]
    said = capsys.readouterr().out
    assert "left out: 1 files, --pattern does not match them" in said
    assert "left out: 1 files, --label_map says so" in said


def test_a_label_in_the_path_and_in_a_table_must_agree(draw, folder):
    draw("normal/1.png")
    table = folder / "labels.txt"
    table.write_text("1.png arthritis\n")
    options = ("--pattern", "^(?P<label>[^/]+)/", "--labels", table)
    assert "label 'normal', but a table says otherwise" in error_of(folder, *options)


def test_a_file_that_kills_its_reader_costs_itself_alone(folder, draw):
    draw("a.png", "killer.png", "z.png")
    paths = inventory.list_files(folder).paths
    chunk = Chunk(folder, paths).without(Lost(1, "the decoder crashed"))
    scans = inspect_files(chunk, lambda number: None)
    assert [one.reason for one in scans] == ["", "the decoder crashed", ""]


def test_damaged_files_do_not_stop_the_scan(write_dicom, draw, folder):
    generator = random.Random(3)
    write_dicom("scans/whole.dcm")
    draw("whole.png", "whole.tif", "whole.jpg")
    for path in list(folder.iterdir()):
        content = path.read_bytes()
        for n in range(12):
            damaged = bytearray(content[: generator.randrange(len(content))] if n % 2 else content)
            for _ in range(20):
                damaged[generator.randrange(min(len(damaged), 2000) or 1)] = generator.randrange(
                    256
                )
            (folder / f"{n}{path.name}").write_bytes(damaged)
    rows = run(folder)
    assert {"whole.dcm", "whole.png", "whole.tif", "whole.jpg"} <= {row["path"] for row in rows}


def test_folder_names_that_recur_name_no_patient_either(draw, folder):
    draw("P1/scan/ant.png", "P2/scan/ant.png", "P3/other/ant.png")
    rows = run(folder)
    assert [row["patient_id"] for row in rows] == ["", "", "other"]
    assert rows[2]["comment"].startswith("patient from the folder name")


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as caught:
        scan.main(["--help"])
    assert caught.value.code == 0
    assert "--labels BS-80K/wholeBodyANT.txt" in " ".join(capsys.readouterr().out.split())


def test_the_command_line_ends_as_promised(draw, folder):
    draw("wholeBodyANT/1.jpg")
    line = [sys.executable, "-m", "tfds_builder.scan"]
    arguments = [str(folder), "--out", str(folder / "manifest.csv")]
    done = subprocess.run([*line, *arguments], capture_output=True, text=True, check=True)
    assert "1 rows, 1 files, 1 patients" in done.stdout
    done = subprocess.run([*line, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: --out")


def test_classes_are_those_of_the_labels_or_those_that_are_listed(draw, folder, capsys):
    names = ("Normal", "Paget", "Stress Fracture")
    draw(*(f"{name}/{n}_ant.png" for n, name in enumerate(names)))
    pattern = ("--pattern", "(?P<label>[^/]+)/")
    rows = run(folder, *pattern)
    assert [row["label"] for row in rows] == ["normal", "paget", "stress_fracture"]
    assert "labels: normal 1, paget 1, stress_fracture 1" in capsys.readouterr().out
    message = error_of(folder, *pattern, "--overwrite", "--classes", "normal,paget")
    assert "label 'Stress Fracture' is not one of normal, paget" in message
    assert "--label_map 'Stress Fracture=CLASS'" in message
    listed = ("--classes", "normal,abnormal")
    mapped = ("--label_map", "stress-fracture=abnormal", "PAGET=abnormal")
    rows = run(folder, *pattern, "--overwrite", *listed, *mapped)
    assert [row["label"] for row in rows] == ["normal", "abnormal", "abnormal"]
    assert "--data_dir data --classes normal,abnormal" in capsys.readouterr().out
    assert "--label_map 'paget=sick'" in error_of(
        folder, "--overwrite", *listed, "--label_map", "paget=sick"
    )


def test_a_label_that_looks_misspelt_leaves_no_manifest(draw, folder):
    draw("Normal/1_ant.png", "Metastatic/2_ant.png")
    pattern = ("--pattern", "(?P<label>[^/]+)/")
    message = error_of(folder, *pattern)
    assert "--pattern: Metastatic/2_ant.png: label 'metastatic' looks like 'metastasis'" in message
    assert not (folder / "manifest.csv").exists()
    rows = run(folder, *pattern, "--label_map", "Metastatic=metastasis")
    assert [row["label"] for row in rows] == ["metastasis", "normal"]


@pytest.mark.parametrize("unknown", ["UNKNOWN", "?", "n/a", "-", "Anonymous", "ANON"])
def test_a_patient_id_that_means_unknown_names_no_patient(write_dicom, folder, unknown):
    for n in range(2):
        write_dicom(f"scans/{n}.dcm", PatientID=unknown, StudyInstanceUID=f"1.{n}")
    assert columns(run(folder), "patient_id", "comment") == [
        ("0", "patient from the file name"),
        ("1", "patient from the file name"),
    ]


def test_files_of_one_study_are_one_patient_where_names_say_otherwise(write_dicom, folder):
    for n, (patient, study) in enumerate((("", "1.1"), ("", "1.1"), ("", "1.2"), ("H-2", "1.2"))):
        write_dicom(f"scans/IM{n}", PatientID=patient, StudyInstanceUID=study)
    other = "patient from another file of its study"
    assert columns(run(folder), "patient_id", "study_id", "comment") == [
        ("IM0", "1.1", "patient from the file name"),
        ("IM0", "1.1", other),
        ("H-2", "1.2", other),
        ("H-2", "1.2", ""),
    ]
    rows = run(folder, "--overwrite", "--pattern", r"(?P<patient>\d)")
    assert [row["patient_id"] for row in rows] == ["0", "1", "2", "3"]


def test_the_view_of_a_pattern_comes_before_that_of_the_header(write_dicom, folder):
    write_dicom("scans/H_post.dcm", views=("anterior",))
    odd = "its path says posterior, its header anterior"
    assert columns(run(folder), "view", "comment") == [("", odd)]
    rows = run(folder, "--overwrite", "--pattern", "_(?P<view>post)")
    assert columns(rows, "view", "comment") == [("posterior", odd)]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_folder_with_accents_goes_from_scan_to_build(write_dicom, draw, folder, form):
    name = unicodedata.normalize(form, "M\u00fcller")
    write_dicom(f"scans/{name}/a.dcm", PatientID="P1")
    draw(f"{name}_ant.png", f"{name}_post.png")
    table = folder.parent / "labels.csv"
    composed = unicodedata.normalize("NFC", name)
    table.write_text(f"path,label\n{composed}/a.dcm,normal\n{composed}_ant.png,abnormal\n")
    rows = run(folder, "--labels", table)
    assert [row["label"] for row in rows] == ["normal", "abnormal", ""]
    pattern = f"^(?P<patient>{composed})_(?P<view>ant|post)"
    labelled = run(folder, "--overwrite", "--pattern", pattern, "--labels", table)
    assert {row["patient_id"] for row in labelled} == {composed}
    manifest = folder / "manifest.csv"
    lines = [f"{row['path']},{n},normal" for n, row in enumerate(rows)]
    manifest.write_text("\n".join(["path,patient_id,label", *lines]))
    assert all(row.path.is_file() for row in read_manifest(manifest))


def test_files_that_a_rule_of_thumb_is_against_are_proposed_with_accept(
    write_dicom, folder, capsys
):
    spot = ["ORIGINAL", "PRIMARY", "SPOT", "EMISSION"]
    write_dicom("scans/a.dcm")
    write_dicom("scans/b.dcm", ImageType=spot, PatientID="P-2")
    write_dicom("scans/c.dcm", ImageType=spot, BurnedInAnnotation="YES")
    assert [row["path"] for row in run(folder)] == ["a.dcm"]
    assert "'yes' in the manifest's 'accept' takes it" in capsys.readouterr().out.replace("\n", " ")
    rows = run(folder, "--accept", out="accepted.csv")
    assert [(row["path"], row["accept"]) for row in rows] == [("a.dcm", ""), ("b.dcm", "yes")]
    assert "although it is a special acquisition" in rows[1]["comment"]
