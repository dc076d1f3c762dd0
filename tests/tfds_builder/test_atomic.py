from pathlib import Path

import pytest

from tfds_builder.atomic import write_text, write_whole
from tfds_builder.errors import DataError


def test_a_text_is_written_as_it_is_and_replaces_an_earlier_one(tmp_path):
    path = tmp_path / "table.csv"
    for text in ("long ago, and longer", "naïve 患者\r\nx\n"):
        write_text(path, text)
        assert path.read_bytes() == text.encode()
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_not_in_its_place_before_it_is_whole(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("earlier")

    def write(part: Path) -> None:
        part.write_text("later")
        assert part.parent == tmp_path
        assert path.read_text() == "earlier"

    write_whole(path, write)
    assert path.read_text() == "later"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_earlier_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.csv"
    path.write_text("earlier")

    def write(part: Path) -> None:
        part.write_text("half")
        raise error

    with pytest.raises(DataError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        write_whole(path, write)
    if isinstance(error, OSError):
        assert str(caught.value) == f"{path}: cannot be written (No space left on device)"
    assert [one.read_text() for one in tmp_path.iterdir()] == ["earlier"]


def test_a_place_that_cannot_be_written_ends_in_one_line(tmp_path):
    for path in (tmp_path / "none" / "a.csv", tmp_path / ("x" * 255)):
        with pytest.raises(DataError, match="cannot be written") as caught:
            write_text(path, "text")
        assert "\n" not in str(caught.value)
