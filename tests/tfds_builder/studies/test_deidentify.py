import stat

import pytest

from tfds_builder.commandline.errors import UserError
from tfds_builder.studies import deidentify


def test_a_missing_key_is_made_once_for_the_owner_alone(tmp_path):
    path = tmp_path / "pseudonym.key"
    key, created = deidentify.read_or_create_key(path)
    assert created
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_text().strip()) == 64
    assert deidentify.read_or_create_key(path) == (key, False)
    assert deidentify.read_or_create_key(tmp_path / "other.key")[0] != key


@pytest.mark.parametrize("content", [b"", b"abc", b"z" * 64, b"0" * 63, b"\xff" * 64])
def test_a_damaged_key_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "pseudonym.key"
    path.write_bytes(content)
    with pytest.raises(UserError, match="64 hexadecimal"):
        deidentify.read_or_create_key(path)
    assert path.read_bytes() == content


def test_a_pseudonym_is_the_head_of_the_hmac():
    # RFC 4231, test case 2: HMAC-SHA256("Jefe", "what do ya want for nothing?").
    pseudonym = deidentify.pseudonym(b"Jefe", "what do ya want for nothing?")
    assert pseudonym == "5bdcc146bf60754e"


def test_pseudonyms_depend_on_key_and_patient():
    keys = [deidentify.pseudonym(key, p) for key in (b"1" * 32, b"2" * 32) for p in "ab"]
    assert len(set(keys)) == 4


def test_the_same_study_number_of_two_patients_is_two_studies():
    key = b"k" * 32
    first, second = (deidentify.pseudonym(key, patient, "1") for patient in ("a", "b"))
    assert first != second


@pytest.mark.parametrize(
    "age, band",
    [
        (None, "unknown"),
        (0, "0-9"),
        (9, "0-9"),
        (50, "50-59"),
        (89, "80-89"),
        (90, "90+"),
        (130, "90+"),
    ],
)
def test_ages_become_decades(age, band):
    assert deidentify.age_band(age) == band


@pytest.mark.parametrize(
    "text, name",
    [
        ("GE Medical Systems", "GE"),
        ("SIEMENS NM", "Siemens"),
        ("ADAC", "Philips"),
        ("Dr. Jane Doe's camera", "other"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_a_manufacturer_is_one_of_a_short_list(text, name):
    assert deidentify.manufacturer(text) == name
