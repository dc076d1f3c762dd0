import builtins
import datetime
from pathlib import Path

import pytest

from tfds_builder.commandline.errors import UserError
from tfds_builder.manifest import read_manifest
from tfds_builder.tables import read_rows

ROWS = [(1, ["patient_id", "label"]), (2, ["00123", "normal"]), (4, ["7", "a b"])]


def rows_of(folder: Path, content: bytes | str, name: str = "t.csv"):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_rows(path)


def error_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_rows(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("sep_line", [False, True])
def test_every_way_to_save_a_table_reads_the_same(
    tmp_path, separator, newline, encoding, quote, sep_line
):
    lines = [["patient_id", "label"], ["00123", "normal"], ["", ""], ["7", "a b"]]
    text = newline.join(separator.join(f"{quote}{c}{quote}" for c in line) for line in lines)
    head = f"sep={separator}{newline}" if sep_line else ""
    assert rows_of(tmp_path, (head + text).encode(encoding)) == ROWS


@pytest.mark.parametrize("line", ["SEP=;", '"sep=;"', "sep=;;;", "sep=; "])
def test_the_separator_line_in_its_forms(tmp_path, line):
    assert rows_of(tmp_path, f"{line}\na;b,c\n") == [(1, ["a", "b,c"])]


def test_a_title_and_decimal_commas_do_not_hide_the_separator(tmp_path):
    text = "Labels, of 2026\npatient;weight;label\n1;70,5;normal\n2;80,25;normal\n"
    assert rows_of(tmp_path, text)[1:3] == [
        (2, ["patient", "weight", "label"]),
        (3, ["1", "70,5", "normal"]),
    ]


def test_cells_that_keep_numbers_as_text_are_these_numbers(tmp_path):
    text = 'id,label\n"=""00123""",x\n="007",x\n\'0042,x\n\'tis,x\n\u200b5\xa0,x\n'
    assert [cells[0] for _, cells in rows_of(tmp_path, text)[1:]] == [
        "00123", "007", "0042", "'tis", "5",
    ]  # fmt: skip


def test_white_space_alone_separates_the_last_word(tmp_path):
    assert rows_of(tmp_path, "a b.jpg 0\n\nc.jpg\t1") == [
        (1, ["a b.jpg", "0"]),
        (3, ["c.jpg", "1"]),
    ]


def test_what_is_no_table_is_one_line(tmp_path):
    assert "no such file" in error_of(tmp_path / "none.csv")
    assert "is a folder" in error_of(tmp_path)
    for content, said in (
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "old or an encrypted workbook"),
        (b"id,label\np\xe9,x\n", "not UTF-8 text"),
        ("id,label\n".encode("utf-16-le"), "not UTF-8 text"),
        (b'id,label\n"a,x\n', "row 2: not valid CSV"),
    ):
        (tmp_path / "t.csv").write_bytes(content)
        assert said in error_of(tmp_path / "t.csv")
    assert rows_of(tmp_path, " \n\n") == []


def test_without_openpyxl_the_package_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "openpyxl":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "t.xlsx").write_bytes(b"PK\x03\x04")
    message = error_of(tmp_path / "t.xlsx")
    assert "install openpyxl" in message
    assert "'.[xlsx]'" in message


@pytest.fixture
def book():
    return pytest.importorskip("openpyxl").Workbook()


def saved(book, folder: Path, name: str = "t.xlsx") -> Path:
    book.save(folder / name)
    return folder / name


def test_a_workbook_reads_like_the_table_that_it_shows(tmp_path, book):
    sheet = book.active
    for line in (["patient_id", "label"], [123, "normal"], [], [7.0, "a b"]):
        sheet.append(line)
    sheet["A2"].number_format = "00000"
    assert read_rows(saved(book, tmp_path)) == [(n, cells) for n, cells in ROWS]


def test_cells_of_a_workbook_as_text(tmp_path, book):
    sheet = book.active
    sheet.append(["00123", 1.5, True, None, "#N/A", datetime.datetime(2026, 1, 2)])
    assert read_rows(saved(book, tmp_path)) == [
        (1, ["00123", "1.5", "TRUE", "", "#N/A", "2026-01-02T00:00:00"])
    ]


def test_merged_cells_say_the_same_in_all_their_places(tmp_path, book):
    sheet = book.active
    for line in (["Labels", None], ["patient_id", "label"], ["P1", "normal"], [None, "normal"]):
        sheet.append(line)
    sheet.merge_cells("A1:B1")
    sheet.merge_cells("A3:A4")
    assert [cells for _, cells in read_rows(saved(book, tmp_path))] == [
        ["Labels", "Labels"], ["patient_id", "label"], ["P1", "normal"], ["P1", "normal"],
    ]  # fmt: skip


def test_the_first_visible_sheet_that_is_not_empty_counts(tmp_path, book, capsys):
    book.create_sheet("labels").append(["a", "b"])
    assert read_rows(saved(book, tmp_path)) == [(1, ["a", "b"])]
    assert capsys.readouterr().out == ""
    book.create_sheet("hidden", 0).append(["x"])
    book["hidden"].sheet_state = "hidden"
    book.create_sheet("2020").append(["c", "d"])
    assert read_rows(saved(book, tmp_path)) == [(1, ["a", "b"])]
    said = " ".join(capsys.readouterr().out.split())
    assert said.endswith("t.xlsx: sheet 'labels' is read; not read: 'hidden', '2020'")


def test_cells_that_hold_a_format_alone_cost_nothing(tmp_path, book):
    sheet = book.active
    for line in (["patient_id", "label"], ["P1", "normal"], [None, "normal"]):
        sheet.append(line)
    sheet.merge_cells("A2:A200")
    sheet["XFD200"].number_format = "0.00"
    assert read_rows(saved(book, tmp_path))[1:] == [(2, ["P1", "normal"]), (3, ["P1", "normal"])]


def test_ends_of_lines_of_other_systems_are_no_part_of_a_cell(tmp_path, book):
    book.active.append(["normal_x000D_", "a_x000D_\nb"])
    assert read_rows(saved(book, tmp_path)) == [(1, ["normal", "a \nb"])]


def test_a_damaged_workbook_is_one_line(tmp_path, book):
    path = saved(book, tmp_path)
    path.write_bytes(path.read_bytes()[:500])
    assert "cannot be read as a workbook" in error_of(path)


def test_a_manifest_may_be_a_workbook(tmp_path, book):
    book.active.append(["path", "patient_id", "label", "age"])
    book.active.append(["a.dcm", 12, "Abnormal", 57.0])
    (row,) = read_manifest(saved(book, tmp_path))
    assert (row.patient_id, row.label, row.age, row.number) == ("12", "abnormal", 57, 2)
