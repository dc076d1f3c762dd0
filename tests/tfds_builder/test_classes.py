import csv
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tests.tfds_builder.conftest import body_mean
from tfds_builder import build
from tfds_builder.classes import (
    PUBLISHED,
    classes_of,
    fault_of,
    means_unknown,
    misspelt,
    normalise,
    question_labels,
    read_classes,
)
from tfds_builder.commandline.errors import UserError
from tfds_builder.manifest import read_manifest
from tfds_builder.scan import __main__ as scan

SIX = ("normal", "metastasis", "fracture", "paget", "osteomyelitis", "grade_1")


def alike(*labels: str) -> tuple[str, str] | None:
    return misspelt(dict.fromkeys(labels, 1))


def write(write_dicom, write_manifest, labels, **cells) -> Path:
    rows = []
    for n, label in enumerate(labels):
        write_dicom(f"{n}.dcm", PatientID=f"H-{n}")
        rows.append({"path": f"{n}.dcm", "patient_id": f"p{n}", "label": label} | cells)
    return write_manifest(*rows)


def run(manifest: Path, data_dir: Path, *options: str) -> None:
    places = ["--manifest", str(manifest), "--data_dir", str(data_dir)]
    build.main([*places, "--workers", "1", *options])


def built(data_dir: Path, config: str = "views") -> tuple[list[str], list[str]]:
    """The class names of a data set, and the labels of its records."""
    builder = tfds.builder(f"scintigraphy/{config}", data_dir=data_dir)
    feature = builder.info.features["label"]
    source = builder.as_data_source("+".join(builder.info.splits))
    return feature.names, [feature.int2str(source[n]["label"]) for n in range(len(source))]


def test_the_published_classes_come_first_in_their_order_and_others_by_name():
    assert classes_of(["thyroid_carcinoma", "normal", "metastasis", "arthritis"]).names == PUBLISHED
    assert classes_of(["paget", "metastasis", "fracture", "normal"]).names == (
        "normal",
        "metastasis",
        "fracture",
        "paget",
    )
    assert classes_of(["a", "b"], ("b", "c", "a")).names == ("b", "c", "a")


def test_the_most_serious_of_several_labels_is_known_or_not():
    four = classes_of(PUBLISHED)
    assert four.most_serious(["arthritis", "thyroid_carcinoma"]) == "thyroid_carcinoma"
    two = classes_of(["normal", "abnormal"])
    assert two.most_serious(["abnormal", "abnormal"]) == "abnormal"
    assert two.most_serious(["abnormal", "normal"]) is None
    assert two.stratum(["abnormal", "normal"]) == "abnormal"
    given = classes_of([], ("metastasis", "normal"))
    assert given.most_serious(["metastasis", "normal"]) == "normal"


@pytest.mark.parametrize(
    "text, label",
    [
        (" Normal ", "normal"),
        ("Thyroid-Carcinoma", "thyroid_carcinoma"),
        ("bone  metastasis", "bone_metastasis"),
        ("Me\u0301tastase", "m\u00e9tastase"),
        ("STRASSE", "strasse"),
    ],
)
def test_a_label_is_normalised(text, label):
    assert normalise(text) == label


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "?", "??", "-", "--", "\u2013", ".", "__", "None", "null", "Unknown", "TBD",
        "nan", "NaN", "N/A", "n.a.", "n/a ", "not available", "#N/A", "#REF!", "#DIV/0!",
        "#NAME?", "#VALUE!",
    ],
)  # fmt: skip
def test_values_that_mean_unknown(text):
    assert means_unknown(text)


@pytest.mark.parametrize("text", ["normal", "0", "n", "negative", "no", "x", "unknown_primary"])
def test_values_that_say_something(text):
    assert not means_unknown(text)


@pytest.mark.parametrize("label", ["0", "12", "doe^jane", "a,b", "x" * 41, "m/f", "?", ""])
def test_what_can_be_no_class(label):
    assert fault_of(label)


@pytest.mark.parametrize("label", ["m1", "转移", "सामान्य", "m\u00e9tastase", "grade_2", "x"])
def test_what_may_be_a_class_in_any_script(label):
    assert not fault_of(label)


@pytest.mark.parametrize(
    "labels, found",
    [
        (["normal", "metastases"], ("metastases", "metastasis")),
        (["metastatic", "normal"], ("metastatic", "metastasis")),
        (["nromal"], ("nromal", "normal")),
        (["athritis"], ("athritis", "arthritis")),
        (["thyroidcarcinoma"], ("thyroidcarcinoma", "thyroid_carcinoma")),
        (["fracture", "fractures"], ("fracture", "fractures")),
    ],
)
def test_misspellings_are_questioned(labels, found):
    assert alike(*labels) == found


@pytest.mark.parametrize(
    "labels",
    [
        ["normal", "abnormal"],
        ["metastasis", "no_metastasis"],
        ["grade_1", "grade_2"],
        ["stage_ii", "stage_iii"],
        ["benign", "malignant"],
        ["arthritis", "osteoarthritis"],
        ["normal", "anormal"],
        ["m0", "m1"],
        list(PUBLISHED),
        list(SIX),
    ],
)
def test_other_words_are_no_misspellings(labels):
    assert alike(*labels) is None


def test_the_rarer_of_two_alike_is_questioned():
    assert misspelt({"fracture": 40, "fractur": 2}) == ("fractur", "fracture")


def test_a_label_that_looks_misspelt_is_questioned_with_its_place():
    found = {"abnormal": ["t: row 1", "t: row 2"], "abnormall": ["t: row 3"]}
    said = (
        r"t: row 3: label 'abnormall' looks like 'abnormal' misspelt \(1x\); say that "
        r"abnormall is abnormal, or list the classes: --classes abnormal,abnormall$"
    )
    with pytest.raises(UserError, match=said):
        question_labels(found, "many", "say that {} is {}")


@pytest.mark.parametrize("text", ["", "a,,b", "normal,Normal", "normal,?", "1,2", "a;b"])
def test_a_bad_list_of_classes_is_refused(text):
    with pytest.raises(UserError, match="--classes"):
        read_classes(text)


@pytest.mark.parametrize(
    "labels, names",
    [
        (("Normal", "abnormal") * 2, ["normal", "abnormal"]),
        (("benign", "malignant", "no finding"), ["benign", "malignant", "no_finding"]),
        (SIX, ["normal", "metastasis", "fracture", "grade_1", "osteomyelitis", "paget"]),
        (("metastasis",), ["metastasis"]),
        (("转移", "正常"), ["正常", "转移"]),
    ],
)
def test_the_classes_of_a_data_set_are_those_of_its_manifest(
    write_dicom, write_manifest, tmp_path, capsys, labels, names
):
    run(write(write_dicom, write_manifest, labels), tmp_path / "data")
    assert built(tmp_path / "data")[0] == names
    assert sorted(built(tmp_path / "data")[1]) == sorted(2 * [normalise(one) for one in labels])
    metadata = tfds.builder("scintigraphy/views", data_dir=tmp_path / "data").info.metadata
    assert list(metadata["class_counts"]["train"]) == names
    table = capsys.readouterr().out
    assert all(name[:4] in table for name in names)


def test_classes_on_the_command_line_give_names_and_order(write_dicom, write_manifest, tmp_path):
    manifest = write(write_dicom, write_manifest, ["metastasis", "normal", "metastasis"])
    with pytest.raises(UserError, match=r"row 2: label 'metastasis' is not one of.*and 1 more"):
        run(manifest, tmp_path / "none", "--classes", "normal,metastases")
    assert not (tmp_path / "none").exists()
    run(manifest, tmp_path / "data", "--classes", "metastasis,Normal,arthritis")
    assert built(tmp_path / "data")[0] == ["metastasis", "normal", "arthritis"]
    with pytest.raises(UserError, match="--overwrite"):
        run(manifest, tmp_path / "data")


def test_a_list_of_classes_allows_what_looks_misspelt(write_dicom, write_manifest, tmp_path):
    manifest = write(write_dicom, write_manifest, ["normal", "normals"])
    with pytest.raises(UserError, match=r"row 3: label 'normals' looks like 'normal' misspelt"):
        run(manifest, tmp_path / "data")
    run(manifest, tmp_path / "data", "--classes", "normal,normals")
    assert built(tmp_path / "data")[0] == ["normal", "normals"]


def test_more_labels_than_classes_are_questioned_without_repeating_them(write_manifest):
    rows = [{"path": f"{n}", "patient_id": n, "label": f"doe{n}x"} for n in range(30)]
    with pytest.raises(UserError, match="30 different labels") as caught:
        read_manifest(write_manifest(*rows))
    assert "doe" not in str(caught.value)


def test_a_study_of_unranked_labels_asks_for_their_order(write_dicom, write_manifest, tmp_path):
    write_dicom("a.dcm", views=("anterior",))
    write_dicom("b.dcm", views=("posterior",))
    rows = [
        {"path": "a.dcm", "patient_id": "p", "label": "normal", "study_id": "s"},
        {"path": "b.dcm", "patient_id": "p", "label": "abnormal", "study_id": "s"},
    ]
    manifest = write_manifest(*rows)
    studies = ("--config", "studies")
    with pytest.raises(UserError, match=r"rows 2 and 3: .*--classes normal,abnormal"):
        run(manifest, tmp_path / "data", *studies)
    run(manifest, tmp_path / "data", *studies, "--classes", "normal,abnormal")
    assert built(tmp_path / "data", "studies") == (["normal", "abnormal"], ["abnormal"])
    run(manifest, tmp_path / "views")
    assert sorted(built(tmp_path / "views")[1]) == ["abnormal", "normal"]


@pytest.mark.parametrize("names", [("normal", "abnormal"), ("a_b", "metastasis", "normal"), SIX])
def test_scan_and_build_agree_on_the_classes(tmp_path, rng, monkeypatch, names):
    folder = tmp_path / "scans"
    folder.mkdir()
    lines = ["Patient ID,Diagnosis"]
    for n, name in enumerate(names):
        counts = rng.poisson(body_mean()).astype("uint16")
        Image.fromarray(counts).save(folder / f"p{n}_ant.png")
        lines.append(f"p{n},{name.replace('_', ' ').title()}")
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(lines))
    manifest = folder / "manifest.csv"
    scan.main([str(folder), "--out", str(manifest), "--labels", str(table), "--workers", "1"])
    with manifest.open() as file:
        assert [row["label"] for row in csv.DictReader(file)] == list(names)
    run(manifest, tmp_path / "data")
    assert built(tmp_path / "data")[0] == list(classes_of(names).names)
