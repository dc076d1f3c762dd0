import pytest

from tfds_builder.commandline.command import CommandParser
from tfds_builder.commandline.errors import UserError


@pytest.fixture
def parser():
    parser = CommandParser(prog="build")
    parser.add_argument("--manifest", required=True)
    parser.add_argument("--data_dir")
    return parser


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--manifset", "a.csv"],
            "there is no option --manifset; is --manifest meant?; see --help",
        ),
        (["--manifest", "a.csv", "--zzz=3"], "there is no option --zzz; see --help"),
        (["--data_dir", "x"], "the following arguments are required: --manifest; see --help"),
    ],
)
def test_mistyped_option_is_told_before_the_one_that_is_missing(parser, words, message):
    with pytest.raises(UserError) as error:
        parser.parse_args(words)
    assert str(error.value) == message


def test_a_shortened_option_is_told_where_none_is_taken(parser):
    parser.allow_abbrev = False
    with pytest.raises(UserError) as error:
        parser.parse_args(["--manif", "a.csv"])
    assert str(error.value) == "there is no option --manif; is --manifest meant?; see --help"


def test_shortened_options_and_values_are_taken_as_they_are(parser):
    found = parser.parse_args(["--manif", "a=--b", "--data_dir", "--x=1 --y"])
    assert (found.manifest, found.data_dir) == ("a=--b", "--x=1 --y")
