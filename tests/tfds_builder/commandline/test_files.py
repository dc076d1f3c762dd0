import errno
import re

import pytest

from tfds_builder.commandline.files import (
    WriteError,
    remove_parts,
    write_bytes,
    write_text,
    write_whole,
)


def test_text_is_written_as_it_is_and_replaces_an_earlier_one(tmp_path):
    path = tmp_path / "new" / "table.csv"
    for text in ("long ago, and longer", "naïve 患者\r\nx\n"):
        write_text(path, text)
        assert path.read_bytes() == text.encode()
    assert list(path.parent.iterdir()) == [path]


def test_file_is_not_in_its_place_before_it_is_whole(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("earlier")

    def write(part):
        part.write_text("later")
        assert part.parent == tmp_path
        assert path.read_text() == "earlier"

    write_whole(path, write)
    assert path.read_text() == "later"


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(errno.ENOSPC, "No space"), WriteError, r"a\.json cannot be written: the disk is"),
        (OSError(errno.EDQUOT, "Quota"), WriteError, r"full \([\d.]+ \w+ free in /.*\)"),
        (OSError(errno.EIO, "Input/output error"), WriteError, "Input/output error"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
)
def test_failure_leaves_the_earlier_file_and_nothing_else(tmp_path, error, raised, message):
    path = tmp_path / "a.json"
    path.write_text("earlier")

    def write(part):
        part.write_text("half")
        raise error

    with pytest.raises(raised) as caught:
        write_whole(path, write)
    assert re.search(message, str(caught.value))
    assert [one.read_text() for one in tmp_path.iterdir()] == ["earlier"]


def test_place_that_cannot_be_written_ends_in_one_line(tmp_path):
    (tmp_path / "file").write_text("a file")
    for path in (tmp_path / "file" / "a.csv", tmp_path / ("x" * 255)):
        with pytest.raises(WriteError, match="cannot be written") as caught:
            write_bytes(path, b"text")
        assert "\n" not in str(caught.value)


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    for name in (".config.json.0a1b2c3d.part", "config.json", ".lock", "my.part"):
        (tmp_path / name).write_text("")
    remove_parts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.json", "my.part"]
