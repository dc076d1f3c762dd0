from pathlib import PurePosixPath

import pytest

from tfds_builder.commandline.errors import UserError
from tfds_builder.scan.path_names import PathName, PathPattern, read_words


def words(path: str) -> PathName:
    return read_words(PurePosixPath(path))


@pytest.mark.parametrize(
    "path, view, patient, study",
    [
        ("wholeBodyANT/123.jpg", "anterior", "123", "wholeBody/123"),
        ("wholeBodyPOST/123.jpg", "posterior", "123", "wholeBody/123"),
        ("cancer/Anterior/A12.png", "anterior", "12", "cancer/12"),
        ("cancer/Posterior/P12.png", "posterior", "12", "cancer/12"),
        ("cancer/Posterior/A12.png", "posterior", "A12", "cancer/A12"),
        ("P12.png", "", "P12", "P12"),
        ("P17_ant.png", "anterior", "P17", "P17"),
        ("P17_POST_2.tif", "posterior", "P17_2", "P17_2"),
        ("2019/17 - Anterior view.png", "anterior", "17 view", "2019/17 view"),
        ("P17/posterior.png", "posterior", "P17", "P17"),
        ("ant/P17/1.png", "anterior", "1", "P17/1"),
        ("ant.png", "anterior", "", ""),
        ("antWholeBody/9.png", "anterior", "9", "WholeBody/9"),
        ("anteriorwholebody9.png", "anterior", "wholebody9", "wholebody9"),
        ("1.2.840.7.1", "", "1.2.840.7.1", "1.2.840.7.1"),
        # Words that only hold these letters.
        ("patients/grant_postop_pos.png", "", "grant_postop_pos", "patients/grant_postop_pos"),
        ("RANT/antenna1.png", "", "antenna1", "RANT/antenna1"),
    ],
)
def test_views_patients_and_studies_are_told_by_words(path, view, patient, study):
    said = words(path)
    assert (said.view, said.patient, said.study) == (view, patient, study)
    assert not said.contradiction


@pytest.mark.parametrize("path", ["P1_ant_post.png", "post/P1_ant.png", "ant_and_post/P1.png"])
def test_words_of_both_views_name_none(path):
    said = words(path)
    assert said.view == ""
    assert said.contradiction


def test_the_nearest_folder_counts():
    assert words("posterior/ant/1.png").view == "anterior"


def test_where_it_was_found_is_said():
    assert (words("a_ant.png").view_by, words("a_ant.png").patient_by) == ("the file name",) * 2
    assert (words("b/ant.png").view_by, words("b/ant.png").patient_by) == (
        "the file name",
        "the folder name",
    )
    assert words("ant/1.png").view_by == "the folder name"
    assert (words("1.png").view_by, words("ant.png").patient_by) == ("", "")


def test_a_pattern_names_what_it_will():
    pattern = PathPattern(
        r"^(?P<site>\w+)/(?P<patient_1>(?P<label>\w+))/(?P<view>[AP])(?P<patient_2>\d+)\.png$"
    )
    said = pattern.read(PurePosixPath("north/cancer/P007.png"))
    assert (said.site, said.label, said.patient, said.view) == (
        "north",
        "cancer",
        "cancer/007",
        "posterior",
    )
    assert (said.patient_by, said.view_by, said.study_by) == ("--pattern", "--pattern", "")
    assert pattern.read(PurePosixPath("north/cancer/P007.tif")) is None


def test_words_fill_in_where_a_pattern_is_silent():
    said = PathPattern(r"(?P<study>S\d+)").read(PurePosixPath("ant/P7_S12.png"))
    assert (said.study, said.study_by) == ("S12", "--pattern")
    assert (said.view, said.view_by) == ("anterior", "the folder name")
    assert said.patient == "P7_S12"


@pytest.mark.parametrize(
    "text, said",
    [
        ("(", "not a regular expression"),
        ("[A-Z]+", "no named group"),
        ("(?P<patients>x)", "unknown group 'patients'"),
    ],
)
def test_a_bad_pattern_is_refused(text, said):
    with pytest.raises(UserError, match="--pattern") as caught:
        PathPattern(text)
    assert said in str(caught.value)


def test_a_view_that_is_neither_is_refused():
    with pytest.raises(UserError, match=r"'LAT' in x/LAT1\.png is neither anterior"):
        PathPattern(r"(?P<view>[A-Z]+)").read(PurePosixPath("x/LAT1.png"))
