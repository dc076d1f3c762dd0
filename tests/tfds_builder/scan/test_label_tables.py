import unicodedata
from pathlib import Path, PurePosixPath

import pytest

from tfds_builder.commandline.errors import UserError
from tfds_builder.scan.label_tables import (
    LEFT_OUT,
    Keys,
    Meanings,
    join,
    read_meanings,
    read_table,
)

MAP = read_meanings(["0=normal", "1=metastasis"])
FILES = [
    Keys(PurePosixPath("ant/1.jpg"), "P1", "S1"),
    Keys(PurePosixPath("ant/2.jpg"), "P2", "S2"),
    Keys(PurePosixPath("post/1.jpg"), "P1", "S1"),
]


def table(folder: Path, text: str, name: str = "labels.csv"):
    path = folder / name
    path.write_text(text)
    return read_table(path)


def remarks_of(joined) -> list[str]:
    return [remark.partition("csv: ")[2] for remark in joined.remarks]


def error_of(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    "text, labels",
    [
        ("path,label\nant/1.jpg,0\nant/2.jpg,1", ("normal", "metastasis", None)),
        ("label;file\n0;2.jpg\n1;1.jpg", ("metastasis", "normal", "metastasis")),
        ("patient_id\tlabel\tage\nP1\t1\t40\n", ("metastasis", None, "metastasis")),
        (
            "\ufeffstudy_id,Label\r\n\r\nS2, Thyroid carcinoma\r\n",
            (None, "thyroid_carcinoma", None),
        ),
    ],
)
def test_tables_of_every_shape_are_joined(tmp_path, text, labels):
    joined = join(FILES, [table(tmp_path, text)], MAP)
    assert (joined.labels, joined.remarks) == (labels, ())


@pytest.mark.parametrize("text", ["1.jpg 0\n2.jpg\t1\n", "1.jpg   0\n2.jpg 1\n", "1,0\n2,1\n"])
def test_two_columns_without_a_header_are_joined_by_what_they_match(tmp_path, text):
    joined = join(FILES, [table(tmp_path, text)], MAP)
    assert joined.labels == ("normal", "metastasis", "normal")
    assert remarks_of(joined) == ["2 entries matched by file"]


def test_a_row_labels_the_files_that_all_its_columns_name(tmp_path):
    text = "patient_id,study_id,label\nP1,S1,0\nP2,S1,1\nP2,S2,1\nP2,?,1\n"
    files = [
        Keys(PurePosixPath(f"{patient}/{study}.png"), patient, study)
        for patient, study in (("P1", "S1"), ("P1", "S2"), ("P2", "S1"), ("P2", "S2"))
    ]
    joined = join(files, [table(tmp_path, text)], MAP)
    assert (joined.labels, joined.remarks) == (("normal", None, "metastasis", "metastasis"), ())
    read = table(tmp_path, "patient_id,label,path\nP1,0,ant/2.jpg\nP1,0,ant/1.jpg\n")
    joined = join(FILES, [read], MAP)
    assert joined.labels == ("normal", None, None)
    assert remarks_of(joined) == ["1 entries name no file by all of path, patient_id together"]


def test_a_column_that_names_no_file_counts_for_nothing(tmp_path):
    read = table(tmp_path, "MRN,Study,Diagnosis\nP1,1,0\nP2,1,1\n")
    joined = join(FILES, [read], MAP)
    assert joined.labels == ("normal", "metastasis", "normal")
    assert remarks_of(joined) == [
        "its column study_id names none of these files; patient_id alone counts"
    ]
    read = table(tmp_path, "MRN,Study,Diagnosis\nP1,7,0\nP1,8,1\n")
    message = error_of(join, FILES, [read], MAP)
    assert "row 3: its patient_id is labelled otherwise in" in message
    assert message.endswith("row 2; correct one, or add a column path")


def test_a_name_of_files_of_several_patients_is_refused(tmp_path):
    files = [Keys(PurePosixPath(f"{n}/scan.png"), patient, f"{n}/scan") for n, patient in enumerate(
        ("P1", "P2", ""))]  # fmt: skip
    message = error_of(join, files, [table(tmp_path, "file,label\nscan.png,0\n")], MAP)
    assert "row 2: its file stands for files of several patients; add a column path" in message
    assert error_of(join, files[1:], [table(tmp_path, "scan,0\n")], MAP)
    read = table(tmp_path, "file,patient_id,label\nscan.png,P1,1\n")
    assert join(files, [read], MAP).labels == ("metastasis", None, None)


def test_what_follows_the_last_dot_of_a_uid_is_no_suffix(tmp_path):
    files = [Keys(PurePosixPath(f"1.2.840.7.{n}"), "", f"{n}") for n in (1, 2)]
    files.append(Keys(PurePosixPath("1.2.840.7.3.DCM"), "", "3"))
    read = table(tmp_path, "file,label\n1.2.840.7,1\n1.2.840.7.2,0\n1.2.840.7.3,0\n")
    assert join(files, [read], MAP).labels == (None, "normal", "normal")


def test_names_that_may_be_those_of_files_or_of_patients_are_refused(tmp_path):
    files = [Keys(PurePosixPath(f"000{n}.dcm"), patient, "") for n, patient in enumerate(
        ("3", "1", "2"), 1)]  # fmt: skip
    read = table(tmp_path, "ID,Diagnosis\n1,0\n2,0\n3,1\n")
    message = error_of(join, files, [read], MAP)
    assert "its names may be file or patient_id, which gives files different labels" in message
    read = table(tmp_path, "ID,Diagnosis\n1,0\n2,0\n3,0.0\n")
    assert join(files, [read], MAP).labels == ("normal",) * 3


@pytest.mark.parametrize(
    "header, said",
    [
        ("MRN,Diagnosis,Name,Diagnosis", "columns 2 ('Diagnosis') and 4 ('Diagnosis') may both be "
         "label; head the right one 'label'"),
        ("MRN,Patient,Age,Label", "columns 1 ('MRN') and 2 ('Patient') may both be patient_id"),
        ("MRN,Label,x,label", "columns 2 ('Label') and 4 ('label')"),
    ],
)  # fmt: skip
def test_two_columns_of_one_meaning_are_refused(tmp_path, header, said):
    message = error_of(table, tmp_path, f"{header}\nP1,0,x,1\n")
    assert "row 1: " in message
    assert said in message


def test_a_column_under_its_own_name_comes_before_other_words_for_it(tmp_path):
    read = table(tmp_path, "Patient,patient_id,Class,label\nP2,P1,0,1\n")
    assert join(FILES, [read], MAP).labels == ("metastasis", None, "metastasis")


def test_a_table_named_like_a_folder_is_about_that_folder(tmp_path):
    tables = [
        table(tmp_path, "1.jpg 0\n2.jpg 0\n", "ant.txt"),
        table(tmp_path, "1.jpg 1\n9.jpg 1\n", "post.txt"),
    ]
    joined = join(FILES, tables, MAP)
    assert joined.labels == ("normal", "normal", "metastasis")
    assert joined.remarks == (
        f"{tmp_path / 'ant.txt'}: 2 entries matched by file",
        f"{tmp_path / 'post.txt'}: 1 entries matched by file",
        f"{tmp_path / 'post.txt'}: 1 entries name none of these files",
    )


def test_tables_that_contradict_each_other_are_refused(tmp_path):
    tables = [table(tmp_path, "1.jpg 0\n", "x.txt"), table(tmp_path, "P1 1", "y.txt")]
    assert join(FILES, tables[:1], MAP).labels == ("normal", None, "normal")
    tables[1] = table(tmp_path, "patient_id,label\nP1,1\n", "y.csv")
    message = error_of(join, FILES, tables, MAP)
    assert "y.csv: row 2: its patient_id is labelled otherwise in" in message
    assert "x.txt: row 1" in message


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "is empty"),
        ("label,name,age\n0,1.jpg,4\n", "one of path, file, study_id, patient_id, or two"),
        ("1.jpg,0,x\n", "needs a header with 'label'"),
        ("file,label\n1.jpg,0\n1.jpg,1\n", "row 3: the same file has another label in row 2"),
        ('file,label\n"1.jpg,0\n', "not valid CSV"),
    ],
)
def test_a_bad_table_is_refused_with_its_row(tmp_path, text, said):
    message = error_of(table, tmp_path, text)
    assert str(tmp_path / "labels.csv") in message
    assert said in message


def test_tables_that_cannot_be_read_are_refused(tmp_path):
    assert "no such file" in error_of(read_table, tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes(b"file,label\n\xe4,0\n")
    assert "not UTF-8" in error_of(read_table, tmp_path / "latin.csv")


def test_an_unknown_label_names_the_allowed_ones_and_the_remedy(tmp_path):
    message = error_of(join, FILES, [table(tmp_path, "file,label\n1.jpg,2\n")], MAP)
    assert "row 2: label '2' is no name of a class" in message
    assert "--label_map '2=CLASS'" in message
    two = read_meanings(["0=normal"], ("normal", "abnormal"))
    message = error_of(join, FILES, [table(tmp_path, "file,label\n1.jpg,arthritis\n")], two)
    assert "label 'arthritis' is not one of normal, abnormal" in message


def test_a_label_map_may_leave_files_out():
    meant = {"0": "normal", "a=b": "arthritis", "9": LEFT_OUT}
    assert read_meanings(["0=normal", "A=B=Arthritis", "9="]) == Meanings(meant)


@pytest.mark.parametrize("pairs", [["0"], ["0=7"], ["0=?"], ["0=normal", "0.0=arthritis"]])
def test_a_bad_label_map_is_refused(pairs):
    assert error_of(read_meanings, pairs).startswith("--label_map")


@pytest.mark.parametrize(
    "text, labels",
    [
        ("Patient ID,Diagnosis\nP1,1\nP2,0\n", ("metastasis", "normal", "metastasis")),
        ("Class,Image Name\n1,1.jpg\n0,2\n", ("metastasis", "normal", "metastasis")),
        ("Labels of 2026,,\n\nStudyInstanceUID,Age,Class\nS2,40,1\n", (None, "metastasis", None)),
        ("path,label\nant\\1.jpg,1\n./ant/2.jpg,0\n", ("metastasis", "normal", None)),
        ("patient-id;label;;\nP1;1;;\n;;;\n", ("metastasis", None, "metastasis")),
        ("patient_id,label\nP1,1.0\nP2,nan\n", ("metastasis", None, "metastasis")),
        ("patient_id,label\nP1,#N/A\nP2,Normal\n", (None, "normal", None)),
    ],
)
def test_headers_as_people_write_them(tmp_path, text, labels):
    assert join(FILES, [table(tmp_path, text)], MAP).labels == labels


@pytest.mark.parametrize(
    "name, key",
    [
        ("ant/1.jpg", "path"),
        ("1.jpg", "file"),
        ("1", "file"),
        ("P1", "patient_id"),
        ("S1", "study_id"),
    ],
)
def test_two_columns_under_an_unknown_header_go_by_what_the_files_say(tmp_path, name, key):
    joined = join(FILES, [table(tmp_path, f"Case,Outcome\n{name},1\n")], MAP)
    assert joined.labels[0] == "metastasis"
    assert remarks_of(joined) == [
        f"1 entries matched by {key}",
        "row 1 names no file, so it is taken for a header",
    ]


def test_a_first_row_that_names_a_file_is_no_header(tmp_path):
    joined = join(FILES, [table(tmp_path, "1.jpg,0\n2.jpg,1\n")], MAP)
    assert joined.labels == ("normal", "metastasis", "normal")
    assert remarks_of(joined) == ["2 entries matched by file"]


def test_a_table_that_names_nothing_says_by_what_it_was_tried(tmp_path):
    joined = join(FILES, [table(tmp_path, "Case,Outcome\nX1,1\nX2,0\n")], MAP)
    assert joined.labels == (None, None, None)
    (remark,) = joined.remarks
    assert remark.endswith(
        "none of its 3 entries names one of these files by path, file, study_id or patient_id"
    )


def test_numbers_are_found_without_their_zeros_where_that_leaves_no_doubt(tmp_path):
    files = [Keys(PurePosixPath(f"{n}"), patient, "") for n, patient in enumerate(
        ("00123", "0042", "42", "007", "8"))]  # fmt: skip
    read = table(tmp_path, "patient_id,label\n123,0\n042,1\n7.0,1\n008,0\n")
    joined = join(files, [read], MAP)
    assert joined.labels == ("normal", None, None, "metastasis", "normal")
    unused, zeros = joined.remarks
    assert "1 entries name none of these files" in unused
    assert "3 entries match only without the zeros before their number" in zeros


def test_accents_are_found_however_they_are_written(tmp_path):
    for ours, theirs in (("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")):
        path = PurePosixPath(unicodedata.normalize(ours, "M\u00fcller/\u00c5.png"))
        files = [Keys(path, unicodedata.normalize(ours, "M\u00fcller"), "")]
        for line in ("path,label\nM\u00fcller/\u00c5.png", "patient_id,label\nM\u00fcller"):
            text = unicodedata.normalize(theirs, f"{line},1\n")
            assert join(files, [table(tmp_path, text)], MAP).labels == ("metastasis",)


def test_rows_that_say_nothing_are_counted(tmp_path):
    read = table(tmp_path, "patient_id,label\nP1,0\nP2,?\nP3,\n#REF!,1\n")
    joined = join(FILES, [read], MAP)
    assert joined.labels == ("normal", None, "normal")
    assert remarks_of(joined) == [
        "1 labels say that they are unknown",
        "2 rows lack a name or a label",
    ]
