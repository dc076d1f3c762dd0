"""The oracle: reading a cohort by rule, from the sites of visible lesions alone."""

import subprocess
import sys

import numpy as np
import pytest

from tests.phantom_checks.oracle import confusion, read_by_rule, read_cohort, report
from tfds_builder.commandline.errors import UserError
from tfds_builder.phantom import LABELS
from tfds_builder.phantom.cohort import make_cohort

HEADER = (
    "path,patient_id,study_id,label,number,kind,site,side,cold,volume_ml,"
    "contrast_anterior,contrast_posterior,snr_anterior,snr_posterior,"
    "visible_anterior,visible_posterior"
)


@pytest.mark.parametrize(
    "places, label",
    [
        ([], "normal"),
        ([("knee_medial", "left"), ("knee_medial", "right")], "arthritis"),
        ([("patella", "left")], "arthritis"),
        ([("facet_L4", "left")], "arthritis"),
        ([("vertebra_L4", "")], "metastasis"),
        ([("rib_7", "left")], "metastasis"),
        ([("knee_medial", "left"), ("knee_medial", "right"), ("ilium", "left")], "metastasis"),
        ([("humerus_shaft", "right")], "metastasis"),
        ([("femur_head", "left")], "metastasis"),
        ([("femur_head", "left"), ("femur_head", "left")], "metastasis"),
        ([("femur_head", "left"), ("acetabulum", "left")], "arthritis"),
        ([("femur_head", "left"), ("femur_head", "right")], "arthritis"),
        ([("humerus_head", "left"), ("glenoid", "right")], "arthritis"),
        ([("humerus_head", "left"), ("knee_medial", "left")], "metastasis"),
        ([("thyroid_lobe", "left")], "thyroid_carcinoma"),
        ([("neck_nodes", "right"), ("rib_7", "left")], "thyroid_carcinoma"),
        ([("thyroid_lobe", "left"), ("patella", "left")], "thyroid_carcinoma"),
    ],
)
def test_rule(places, label):
    assert read_by_rule(places) == label
    assert read_by_rule(reversed(places)) == label


def _row(path, site, side="", visible=("true", "true"), kind="metastasis", cold="false"):
    return f"{path},P,S,x,1,{kind},{site},{side},{cold},2.0,2.5,1.5,30,9,{visible[0]},{visible[1]}"


def _cohort(folder, labels, rows, header=HEADER):
    manifest = ["path,patient_id,label", *(f"{n}.dcm,P{n},{x}" for n, x in enumerate(labels))]
    (folder / "manifest.csv").write_text("\n".join(manifest) + "\n")
    (folder / "lesions.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def test_lesions_that_no_view_shows_are_not_read_and_one_view_is_enough(tmp_path):
    rows = [
        _row("1.dcm", "rib_4", "left", ("false", "false")),
        _row("2.dcm", "rib_4", "left", ("false", "true")),
        _row("3.dcm", "knee_medial", "left"),
        _row("3.dcm", "ilium", "left", ("false", "false")),
    ]
    labels = ["normal", "metastasis", "metastasis", "metastasis"]
    studies = read_cohort(_cohort(tmp_path, labels, rows))
    expected = np.zeros((4, 4), int)
    expected[0, 0] = expected[1, 0] = expected[1, 1] = expected[1, 2] = 1
    np.testing.assert_array_equal(confusion(studies), expected)
    accuracy, text = report(studies)
    assert accuracy == 0.5
    assert "accuracy 0.5000 on 4 studies" in text
    share = next(line.split()[-1] for line in text.splitlines() if line.startswith("metastasis "))
    assert share == "0.333"


def test_kind_and_label_of_a_lesion_do_not_change_what_the_rule_reads(tmp_path):
    for kind in ("metastasis", "arthritis", "thyroid", "anything"):
        studies = read_cohort(_cohort(tmp_path, ["normal"], [_row("0.dcm", "rib_4", kind=kind)]))
        assert confusion(studies)[0, LABELS.index("metastasis")] == 1


def test_statistics_of_sites_are_those_of_the_table(tmp_path):
    rows = [
        _row("0.dcm", "vertebra_L3"),
        _row("0.dcm", "vertebra_T9"),
        _row("0.dcm", "vertebra_T4", cold="true"),
        _row("1.dcm", "rib_4", "left"),
        _row("1.dcm", "patella", "left", kind="arthritis"),
    ]
    _, text = report(read_cohort(_cohort(tmp_path, ["metastasis"] * 2, rows)))
    table = {words[0]: words for words in map(str.split, text.splitlines()) if words}
    assert table["spine"][1:5] == ["3", "0.750", "0.333", "2.50"]
    assert table["ribs"][1:4] == ["1", "0.250", "0.000"]
    assert table["knee"][1] == "1"
    assert "metastases: 2.0 a study, from 1 to 3" in text
    assert "arthritis as well: 0.500 of metastasis" in text


def test_reads_what_the_phantom_writes(tmp_path):
    make_cohort(tmp_path / "cohort", 8, 5, 1, lambda done, total: None)
    studies = read_cohort(tmp_path / "cohort")
    assert len(studies) >= 8
    for study in studies:
        assert (study.label == "normal") == (not study.lesions)
    assert report(studies)[0] > 0.8


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda folder: (folder / "lesions.csv").unlink(), "lesions.csv"),
        (lambda folder: _cohort(folder, ["normal"], [], "path,kind"), "no column site"),
        (lambda folder: _cohort(folder, ["gout"], []), "row 2: label"),
        (lambda folder: _cohort(folder, ["normal"], [_row("9.dcm", "rib_4")]), "row 2: path"),
        (
            lambda folder: _cohort(folder, ["normal"], [_row("0.dcm", "rib_4", cold="maybe")]),
            "row 2",
        ),
        (lambda folder: _cohort(folder, ["normal"], ["0.dcm,metastasis"]), "row 2"),
    ],
)
def test_bad_tables_are_named(tmp_path, change, message):
    change(_cohort(tmp_path, ["normal"], []))
    with pytest.raises(UserError, match=message):
        read_cohort(tmp_path)


def test_command_exits_with_1_below_the_limit_and_2_on_bad_input(tmp_path):
    _cohort(tmp_path, ["normal", "normal"], [_row("1.dcm", "rib_4", "left")])
    for arguments, status in (
        (["--cohort", tmp_path, "--limit", "0.4"], 0),
        (["--cohort", tmp_path, "--limit", "0.6"], 1),
        (["--cohort", tmp_path / "nowhere"], 2),
        (["--cohort", tmp_path, "--limit", "nan"], 2),
    ):
        ran = subprocess.run(
            [sys.executable, "-m", "tests.phantom_checks.oracle", *map(str, arguments)],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert ran.returncode == status, ran.stderr
        assert len(ran.stderr.strip().splitlines()) == (0 if status == 0 else 1)
        assert ("accuracy 0.5000" in ran.stdout) == (status < 2)
