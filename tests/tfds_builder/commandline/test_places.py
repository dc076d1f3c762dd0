import os
import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from tfds_builder.commandline import command
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.places import read_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("runs/x", "runs/x"),
        ("/a b/[1]*?", "/a b/[1]*?"),
        ("~/runs", "{home}/runs"),
        ("~", "{home}"),
        ("a/~", "a/~"),
        ("a:b/c", "a:b/c"),
        ("gs/x", "gs/x"),
        ("/data/s3/x", "/data/s3/x"),
        ("file:/x", "file:/x"),
        (" ", " "),
        ("日本/ü", "日本/ü"),
    ],
)
def test_path_is_what_was_written(monkeypatch, text, expected):
    monkeypatch.setenv("HOME", "/home/me")
    assert read_path(text) == Path(expected.format(home="/home/me"))


REFUSED = {
    "": "empty",
    "gs://bucket/run": "URL is no folder",
    "s3://bucket": "URL is no folder",
    "hdfs://name:9000/run": "URL is no folder",
    "https://host/run": "URL is no folder",
    "file:///data/run": "give the path itself, /data/run",
    "file://localhost/data/run": "give the path itself, /data/run",
    "FILE:///x": "give the path itself, /x",
    "a\\b": "a backslash",
    "logs:/run": "'logs:' is taken for a bucket",
    "/s3/bucket": "/s3 is taken for a bucket",
    "run.__lock/x": "kept for locks",
    os.fsdecode(b"a\xff"): "no UTF-8",
    "x" * 300: "too long",
    "x/" * 2100: "too long",
    "two\nlines\\": "two lines",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: ascii(text)[:30])
def test_what_is_no_folder_that_can_be_written_is_told_in_one_line(text):
    with pytest.raises(ArgumentTypeError, match=REFUSED[text]) as caught:
        read_path(text)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


def test_every_path_of_a_command_is_read_so():
    parser = command.CommandParser()
    parser.add_argument("--out", type=Path)
    with pytest.raises(UserError, match="--out: gs://b/x: a URL is no folder"):
        parser.parse_args(["--out", "gs://b/x"])
    assert parser.parse_args(["--out=~"]).out == Path.home()


@pytest.mark.parametrize("workdir", ["gs://b/run", "", "a\\b"])
def test_training_refuses_such_a_place_before_it_writes_anything(tmp_path, workdir):
    words = ["--config", "configs/quickstart.py", "--workdir", workdir]
    done = subprocess.run(
        [sys.executable, "-m", "dscint_jax.main", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent.parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --workdir: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["./~", "./~/x", "./~backup", "~backup", "a/~"])
def test_only_a_leading_home_folder_is_expanded(text):
    assert read_path(text) == Path(text)
    assert read_path("~/runs") == Path.home() / "runs"
