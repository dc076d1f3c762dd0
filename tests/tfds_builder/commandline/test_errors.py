"""What the operating system refuses, in whatever error it arrives, is one line."""

import errno
import os
import subprocess
import sys

import pytest

from tfds_builder.commandline.errors import UserError, refusal, run_command


def _raised(make):
    try:
        make()
    except Exception as error:
        return error


def _library_error():
    try:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/data/x.json")
    except OSError as error:
        raise ValueError("cannot read the metadata") from error


def _several():
    raise ExceptionGroup("tasks", [ValueError("one"), _os_error(errno.EROFS, "/ro/checkpoint")])


def _os_error(number, place=None):
    return OSError(number, os.strerror(number), place)


TENSORSTORE = (
    'PERMISSION_DENIED: Error opening "zarr" driver: Error reading local file "/run/d/0": '
    "Permission denied [OS error 13: EACCES] [source locations='file_util.cc:1']"
)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (_os_error(errno.EACCES, "/data/x.json"), ["/data/x.json: permission denied; ask for"]),
        (_os_error(errno.EPERM, b"/data/x.json"), ["/data/x.json: operation not permitted; ask"]),
        (_os_error(errno.EROFS, "w"), ["w: read-only file system; use another place"]),
        (_os_error(errno.EMFILE, "w"), ["w: too many open files; allow more by ulimit -n 4096 ("]),
        (_os_error(errno.EIO), ["input/output error; the disk or file server"]),
        (_os_error(errno.ENOSPC, "w"), ["w: the disk is full; make room"]),
        (_os_error(errno.EDQUOT), ["the quota of the disk is full; make room"]),
        (_os_error(errno.ENOTDIR, "a.csv/x"), ["a.csv/x: not a directory"]),
        (_os_error(errno.ENAMETOOLONG, "n" * 999), ["nnn: file name too long"]),
        (_os_error(errno.ESTALE, "w"), ["w: stale file handle"]),
        (_raised(_library_error), ["/data/x.json: permission denied; ask for"]),
        (_raised(_several), ["/ro/checkpoint: read-only file system"]),
        (ValueError(TENSORSTORE), ["/run/d/0", "permission denied; ask for"]),
        (RuntimeError("cannot create thread: Too many open files"), ["ulimit -n 4096"]),
    ],
)
def test_refusal_of_the_operating_system_is_told_with_its_place(error, words):
    line = refusal(error)
    for word in words:
        assert word in line


def _bug_beside_a_handled_error():
    try:
        raise _os_error(errno.EACCES, "/cache")
    except OSError:
        len(None)


@pytest.mark.parametrize(
    "error",
    [
        _raised(_bug_beside_a_handled_error),
        ValueError("a fault of the program"),
        OSError("no number"),
        # Not the disk: a socket.
        ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)),
        KeyError("x"),
    ],
)
def test_faults_of_the_program_are_not_mistaken_for_it(error):
    assert refusal(error) is None
    with pytest.raises(type(error)):
        run_command(lambda: _fail(error))


def _fail(error):
    raise error


@pytest.mark.parametrize(
    "error", [UserError("row 3:\n two lines"), _os_error(errno.EACCES, "a\nb")]
)
def test_command_ends_in_one_line_with_status_2(error, capsys):
    stdout = sys.stdout
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda: _fail(error))
    sys.stdout = stdout
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1


SHOW_LIMIT = """
import resource
from tfds_builder.commandline.errors import run_command

run_command(lambda: print(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
"""


@pytest.mark.parametrize(("limit", "status"), [("-n 20", 2), ("-S -n 20", 0), ("-n 300", 0)])
def test_too_few_open_files_are_raised_or_said(limit, status):
    done = subprocess.run(
        ["bash", "-c", f"ulimit {limit} && exec '{sys.executable}' -c \"$1\"", "bash", SHOW_LIMIT],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status
    if status:
        assert done.stderr == (
            "error: only 20 files may be open at a time and 256 are needed; allow more by ulimit "
            "-n 4096\n"
        )
        return
    assert done.stderr == ""
    assert int(done.stdout) >= 256
