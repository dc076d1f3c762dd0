"""Signals that ask for a stop: which one is told, what it leaves alone, and SLURM's queue."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from dscint_jax.training.stopping import STOPPING, Interruption, requeue

# Trains until it is told to stop, and leaves the signal's name in a file as a save would.
PROGRAM = """
import sys, time
from pathlib import Path
from dscint_jax.training.stopping import Interruption
from tfds_builder.commandline.progress import say

with Interruption(75) as interruption:
    # A test that fails leaves no process behind for ever.
    end = time.monotonic() + 100
    compiling = interruption.nothing_to_save = "compiling" in sys.argv
    Path(sys.argv[1], "begun").touch()
    while compiling and time.monotonic() < end:
        time.sleep(0.001)
    while not interruption.signal and time.monotonic() < end:
        say("a step")
        time.sleep(0.001)
    for _ in range(20):
        say("a step")
    Path(sys.argv[1], "saved").write_text(interruption.signal.name)
"""


def _as_by_default():
    # The tests themselves may run under nohup, and what is ignored stays so in programs started.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _start(folder, *arguments, **options):
    words = [sys.executable, "-c", PROGRAM, str(folder), *arguments]
    process = subprocess.Popen(words, preexec_fn=_as_by_default, **options)
    deadline = time.monotonic() + 60
    while not (folder / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return process


# SIGHUP would take the terminal from the tests themselves.
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_that_asks_for_a_stop_is_told_and_later_ones_break_nothing(number):
    before = {each: signal.getsignal(each) for each in STOPPING}
    try:
        with Interruption() as interruption:
            for each in (number, signal.SIGTERM, signal.SIGUSR1):
                signal.raise_signal(each)
            assert interruption.signal is number
        assert all(signal.getsignal(each) is signal.SIG_IGN for each in STOPPING)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_signal_that_was_ignored_before_stays_so_as_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGHUP)
            assert interruption.signal is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_terminal_that_closes_is_a_wish_to_stop_and_what_is_printed_then_goes_nowhere(tmp_path):
    ours, theirs = pty.openpty()
    # In a session of its own, whose terminal this becomes as it is opened.
    begin = f'exec <>{os.ttyname(theirs)} >&0 2>&0; exec \'{sys.executable}\' -c "$0" "$1"'
    process = subprocess.Popen(
        ["bash", "-c", begin, PROGRAM, str(tmp_path)],
        start_new_session=True,
        preexec_fn=_as_by_default,
    )
    while not (tmp_path / "begun").exists():
        os.read(ours, 1000)
    os.close(ours)
    assert process.wait(60) == 0
    os.close(theirs)
    assert (tmp_path / "saved").read_text() == "SIGHUP"


def test_reader_of_a_pipe_that_is_gone_ends_no_training(tmp_path):
    process = _start(tmp_path, stdout=subprocess.PIPE)
    process.stdout.close()
    time.sleep(0.1)
    assert process.poll() is None
    process.terminate()
    assert process.wait(60) == 0
    assert (tmp_path / "saved").read_text() == "SIGTERM"


@pytest.mark.parametrize("number", STOPPING)
def test_nothing_to_save_ends_at_once_with_the_status_asked_for(tmp_path, number):
    with (tmp_path / "log").open("w") as log:
        process = _start(tmp_path, "compiling", stdout=log)
        process.send_signal(number)
        assert process.wait(60) == 75
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last == f"stopped by {number.name}, nothing to save; the same command starts again"


def _scontrol(folder, monkeypatch, body):
    program = folder / "scontrol"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


JOB = {"SLURM_JOB_ID": "17"}


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        (JOB, "17"),
        ({**JOB, "SLURM_ARRAY_JOB_ID": "15", "SLURM_ARRAY_TASK_ID": "2"}, "15_2"),
    ],
)
def test_job_goes_into_slurms_queue_again(tmp_path, monkeypatch, capsys, environment, job):
    _scontrol(tmp_path, monkeypatch, f'echo "$@" >{tmp_path}/asked')
    requeue(environment)
    assert (tmp_path / "asked").read_text() == f"requeue {job}\n"
    assert capsys.readouterr().out == f"job {job} goes into the queue again\n"


def test_queue_that_does_not_take_the_job_is_told_in_its_own_words(tmp_path, monkeypatch, capsys):
    _scontrol(tmp_path, monkeypatch, "echo 'Requested operation is disabled' >&2; exit 1")
    requeue(JOB)
    printed = capsys.readouterr().out
    assert printed == (
        "warning: job 17 does not go into the queue again: Requested operation is disabled\n"
    )


def test_without_scontrol_there_is_one_line_and_without_slurm_none(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    requeue(JOB)
    assert capsys.readouterr().out.startswith("warning: job 17 does not go into the queue again: ")
    requeue({})
    assert capsys.readouterr().out == ""
