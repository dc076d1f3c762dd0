import contextlib
import io
import re
import sys

import pytest

from tfds_builder.commandline import progress
from tfds_builder.commandline.progress import ProgressBar


class Clock:
    """Moved by hand."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def _run(clock, terminal=None, **options):
    settings = {"total": 1000, "rate_factor": 48, "unit": "step", "clock": clock, **options}
    with (
        contextlib.redirect_stdout(terminal or sys.stdout),
        ProgressBar("training", **settings) as bar,
    ):
        for step in range(1, 101):
            clock.now += 0.4
            bar.update(step, f"loss {1 / step:.3f}")
        bar.say("step 100: validation [loss 1.2]")


def test_plain_lines_come_now_and_then_with_speed_loss_step_time_and_time_left(clock, capsys):
    _run(clock)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "training: 38/1000, 120 images/s, 0.4 s a step, loss 0.026, 7 min left",
        "training: 76/1000, 120 images/s, 0.4 s a step, loss 0.013, 7 min left",
        "step 100: validation [loss 1.2]",
    ]


def test_speed_is_the_recent_one_and_time_left_counts_every_pause(clock, capsys):
    with ProgressBar("training", total=100, done=10, clock=clock, unit="step") as bar:
        for step in range(11, 51):
            clock.now += 10.0
            bar.update(step)
        capsys.readouterr()
        for step in range(51, 91):
            clock.now += 5.0
            bar.update(step)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "training: 89/100, 0.2 images/s, 5 s a step, 83 s left"


def test_measured_step_time_is_shown_instead(clock, capsys):
    with ProgressBar("training", total=100, rate_factor=32, clock=clock, unit="step") as bar:
        clock.now += 20.0
        bar.update(10, seconds_each=0.5)
    assert "10/100, 64 images/s, 0.5 s a step, 3 min left" in capsys.readouterr().out


def test_total_may_be_unknown(clock, capsys):
    with ProgressBar("reading", noun="studies", clock=clock) as bar:
        clock.now += 16.0
        bar.update(32)
        clock.now += 16.0
        bar.update(64, total=96)
    assert capsys.readouterr().out.splitlines() == [
        "reading: 32, 2.0 studies/s",
        "reading: 64/96, 2.0 studies/s, 16 s left",
    ]


def test_nothing_done_yet_is_no_speed(clock, capsys):
    with ProgressBar("reading", total=5, clock=clock) as bar:
        clock.now += 16.0
        bar.update(0, "waiting")
    assert capsys.readouterr().out == "reading: 0/5, waiting\n"


def test_other_processes_are_silent(clock, terminal):
    _run(clock, terminal, shown=False)
    assert terminal.getvalue() == ""


def test_terminal_has_a_bar(clock, terminal):
    _run(clock, terminal)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "100/1000 120 images/s, 0.4 s a step, loss 0.010, 6 min left" in text
    assert "step 100: validation [loss 1.2]" in text
    assert "\x1b[" in terminal.getvalue()


def test_terminal_without_a_cursor_gets_plain_lines(clock, terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    _run(clock, terminal)
    assert not {"\x1b", "\r"} & set(terminal.getvalue())
    assert terminal.getvalue().count("training: ") == 2


def test_bar_has_colours_unless_none_are_wanted(clock, terminal, monkeypatch):
    colour = re.compile(r"\x1b\[(\d+;)*(3[0-8]|9[0-7])[;m]")
    _run(clock, terminal)
    assert colour.search(terminal.getvalue())
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    _run(clock, plain)
    assert "100/1000" in plain.getvalue()
    assert not colour.search(plain.getvalue())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (99.0, "99 s"), (101.0, "2 min"), (5400.0, "90 min"), (12000.0, "3 h 20 min")],
)
def test_durations_are_short(seconds, text):
    assert progress._duration(seconds) == text


def test_line_and_its_end_are_one_write_so_that_threads_do_not_mix(monkeypatch):
    writes = []
    stream = io.StringIO()
    monkeypatch.setattr(stream, "write", writes.append)
    monkeypatch.setattr(sys, "stdout", stream)
    progress.say("step 3")
    assert [each for each in writes if each] == ["step 3\n"]


def test_nothing_to_tell_leaves_no_comma(clock, capsys):
    with ProgressBar("patients", total=5, clock=clock) as bar:
        clock.now += 16.0
        bar.update(0)
    assert capsys.readouterr().out == "patients: 0/5\n"
