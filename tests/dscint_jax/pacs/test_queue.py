"""Studies on disk: at whatever operation a process is killed, the next one answers each once."""

import contextlib
import itertools
import os
from collections import Counter

import pytest

from dscint_jax.pacs.client import Refused
from dscint_jax.pacs.queue import Queue, instances_of
from dscint_jax.predict.incoming import MOST_ENDED, Incoming, Pauses
from dscint_jax.predict.networks import Networks
from tfds_builder.commandline.errors import UserError
from tfds_builder.scan.inventory import InspectedFile
from tfds_builder.workers import WorkerPool

OPERATIONS = ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync", "link")


@pytest.fixture(autouse=True)
def _disk_without_delay(monkeypatch):
    """What a process wrote is seen by the next one without fsync, which takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Killed(BaseException):
    """The process is gone: nothing that follows happens."""


@contextlib.contextmanager
def killed_at(number, after):
    """Ends everything at the nth change of the disk, before it or after it."""
    counter, saved = itertools.count(1), {name: getattr(os, name) for name in OPERATIONS}
    dead = []

    def wrapped(name):
        def operation(*arguments, **options):
            if dead:
                raise Killed
            if next(counter) == number:
                dead.append(True)
                if after:
                    saved[name](*arguments, **options)
                raise Killed
            return saved[name](*arguments, **options)

        return operation

    for name in OPERATIONS:
        setattr(os, name, wrapped(name))
    try:
        yield dead
    finally:
        for name, function in saved.items():
            setattr(os, name, function)


class Pool(WorkerPool):
    """Looks at made files: `study instance`, or a reason."""

    def map(self, function, tasks, retry):
        for chunk in tasks:
            yield [self._inspected(path, chunk.folder / path) for path in chunk.paths]

    def _inspected(self, path, place):
        words = place.read_text().split()
        if len(words) == 2:
            return InspectedFile(path, study=words[0], instance=words[1])
        return InspectedFile(path, reason="is no image")


class Made(Incoming):
    """The steps as they are, but for what networks say."""

    def _answer(self, study):
        names = "".join(one.read_text() for one in instances_of(study))
        if "broken" in names:
            raise KeyError("anything")
        self._queue.read(study, f"report {names}".encode(), f"picture {names}".encode())
        return ""


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


def _service(root, sent, *, keep=False, send=None):
    queue = Queue(root, Clock())

    def note(paths):
        sent.append(tuple(path.read_text() for path in paths))

    networks = Networks.__new__(Networks)
    pool = Pool(1, step_seconds=1.0, memory_bytes=1)
    steps = Made(queue, networks, pool, send or note, "PACS", quiet_seconds=2.0, keep=keep)
    return queue, steps


def _life(root, sent, contents, acknowledged, keep):
    """A process that is sent instances and works until nothing is left to do."""
    queue = None
    try:
        queue, steps = _service(root, sent, keep=keep)
        for content in contents:
            if content not in acknowledged:
                queue.put(content.encode())
                acknowledged.append(content)
        for _ in range(6):
            steps.step(lambda: False)
    finally:
        if queue:
            queue.close()


def _check(root, sent, keep):
    assert sorted(len(report.split()) for report, _ in set(sent)) == [3, 4], sent
    queue = Queue(root)
    summary = queue.summary()
    queue.close()
    under_way = "0 received, 0 waiting, 0 reading, 0 sending"
    assert summary == f"{under_way}, 2 answered, 2 aside"
    markers = [*(root / "answered").glob("*/*.json")]
    assert len(markers) == 2
    images = [*(root / "answered").rglob("*.dcm")]
    assert len(images) == (3 + 2 * 2 if keep else 0)
    assert [path.read_text() for path in (root / "aside").glob("*.dcm")] == ["nothing"]


CONTENTS = ("1 a", "1 b", "2 c", "3 broken", "nothing")


@pytest.mark.parametrize("keep", [False, True])
def test_process_killed_at_any_operation_loses_nothing_and_answers_the_same(tmp_path, keep):
    reached = 0
    for number in itertools.count(1):
        survived = []
        for after in (False, True):
            root = tmp_path / f"{number}-{after}"
            sent, acknowledged = [], []
            with killed_at(number, after) as dead, contextlib.suppress(Killed):
                _life(root, sent, CONTENTS, acknowledged, keep)
            _life(root, sent, CONTENTS, acknowledged, keep)
            _check(root, sent, keep)
            # The answer that is sent twice is the same to the last byte.
            assert max(Counter(sent).values()) <= 2
            survived.append(not dead)
        if all(survived):
            break
        reached = number
    assert reached > 40


def test_instance_that_was_acknowledged_is_on_the_disk(tmp_path):
    for number in itertools.count(1):
        queue = Queue(tmp_path / str(number))
        done = False
        with killed_at(number, True) as dead, contextlib.suppress(Killed):
            queue.put(b"content")
            done = True
        queue.close()
        held = [path.read_bytes() for path in queue.received()]
        assert held in ([b"content"], [])
        assert held or not done
        if not dead:
            break
    assert number > 3


def test_instances_of_an_answered_study_are_answered_by_themselves_and_copies_not_at_all(tmp_path):
    sent = []
    queue, steps = _service(tmp_path, sent)
    for contents in (["1 a", "1 b"], ["1 a"], ["1 c", "1 b"]):
        for content in contents:
            queue.put(content.encode())
        for _ in range(6):
            steps.step(lambda: False)
    assert [report for report, _ in sent] in (
        ["report 1 a1 b", "report 1 c"],
        ["report 1 b1 a", "report 1 c"],
    )
    assert ", 0 waiting, " in queue.summary()
    queue.close()


def test_copy_that_comes_while_the_answer_is_under_way_is_not_answered_again(tmp_path):
    sent, pacs_is_there = [], []

    def send(paths):
        if not pacs_is_there:
            raise Refused("PACS refused it: status 0xA700")
        sent.append(paths[0].read_text())

    queue, steps = _service(tmp_path, [], send=send)
    for _ in range(2):
        queue.put(b"1 a")
        for _ in range(6):
            steps.step(lambda: False)
    assert ", 1 waiting, 0 reading, 1 sending, " in queue.summary()
    pacs_is_there.append(True)
    queue.close()
    queue, steps = _service(tmp_path, [], send=send)
    for _ in range(6):
        steps.step(lambda: False)
    assert sent == ["report 1 a"]
    assert queue.summary().startswith("0 received, 0 waiting, 0 reading, 0 sending, 1 answered")
    queue.close()


def test_whatever_sending_provokes_keeps_the_study_and_stops_no_other(tmp_path, capsys):
    sent, broken = [], [True]

    def send(paths):
        if broken and "1 a" in paths[0].read_text():
            raise TypeError("of some library")
        sent.append(paths[0].read_text())

    queue, steps = _service(tmp_path, [], send=send)
    for content in (b"1 a", b"2 b"):
        queue.put(content)
    for _ in range(6):
        steps.step(lambda: False)
    assert sent == ["report 2 b"]
    assert "not sent (TypeError); failed 1 times" in capsys.readouterr().out
    queue.close()
    broken.clear()
    queue, steps = _service(tmp_path, [], send=send)
    steps.step(lambda: False)
    assert sent == ["report 2 b", "report 1 a"]
    queue.close()


def test_study_that_ends_the_process_each_time_is_set_aside_and_the_others_are_answered(
    tmp_path, monkeypatch
):
    def gone(*arguments, **options):
        raise Killed

    class Deadly(Made):
        def _answer(self, study):
            if any("deadly" in one.read_text() for one in instances_of(study)):
                for name in OPERATIONS:
                    monkeypatch.setattr(os, name, gone)
            return super()._answer(study)

    sent = []
    for life in range(MOST_ENDED + 1):
        queue = Queue(tmp_path, Clock())
        networks = Networks.__new__(Networks)
        pool = Pool(1, step_seconds=1.0, memory_bytes=1)
        steps = Deadly(queue, networks, pool, sent.append, "PACS", quiet_seconds=0.0)
        for content in () if life else (b"1 deadly", b"2 a", b"3 b"):
            queue.put(content)
        with contextlib.suppress(Killed):
            for _ in range(3):
                steps.step(lambda: False)
        monkeypatch.undo()
        queue.close()
    assert len(sent) == 2
    (reason,) = (tmp_path / "aside").glob("*/reason.txt")
    assert reason.read_text() == "ended the service 3 times while it was read\n"
    assert list((tmp_path / "reading").iterdir()) == []


def test_failure_that_is_not_the_studys_is_said_with_its_reason_and_then_forgotten(
    tmp_path, capsys
):
    full = [True]

    class Failing(Made):
        def _answer(self, study):
            if full:
                raise UserError("no worker can be started")
            return super()._answer(study)

    queue = Queue(tmp_path, Clock())
    networks = Networks.__new__(Networks)
    pool = Pool(1, step_seconds=1.0, memory_bytes=1)
    steps = Failing(queue, networks, pool, lambda paths: None, "PACS", quiet_seconds=0.0)
    now = [0.0]
    steps._pauses = Pauses(lambda: now[0])
    queue.put(b"1 a")
    for _ in range(3):
        steps.step(lambda: False)
    assert "no worker can be started; failed 1 times, again in 5 s" in capsys.readouterr().out
    full.clear()
    now[0] = 6.0
    steps.step(lambda: False)
    assert queue.summary().endswith("1 answered, 0 aside")
    (name,) = (path.name for path in (tmp_path / "answered").iterdir())
    assert steps._pauses.failed(name)[0] == 1
    queue.close()


def test_state_folder_that_was_there_is_read_by_nobody_else(tmp_path):
    root = tmp_path / "state"
    root.mkdir(mode=0o755)
    Queue(root).close()
    assert root.stat().st_mode & 0o777 == 0o700


def test_study_waits_while_more_of_it_comes(tmp_path):
    sent = []
    queue, steps = _service(tmp_path, sent)
    for letter in "abcdefgh":
        queue.put(f"1 {letter}".encode())
        steps.step(lambda: False)
    assert not sent
    for _ in range(4):
        steps.step(lambda: False)
    assert len(sent) == 1
    queue.close()


def test_time_in_which_no_process_ran_makes_no_study_complete(tmp_path):
    queue, steps = _service(tmp_path, [])
    queue.put(b"1 a")
    steps.step(lambda: False)
    queue.close()
    sent = []
    queue, steps = _service(tmp_path, sent)
    steps.step(lambda: False)
    assert not sent
    queue.close()


def test_refused_answer_stays_and_stops_no_other(tmp_path, capsys):
    sent = []

    def send(paths):
        content = paths[0].read_text()
        if "1 a" in content:
            raise Refused("PACS refused it: status 0xA900")
        sent.append(content)

    queue, steps = _service(tmp_path, [], send=send)
    for content in ("1 a", "2 b"):
        queue.put(content.encode())
    for _ in range(6):
        steps.step(lambda: False)
    assert sent == ["report 2 b"]
    assert ", 1 sending, " in queue.summary()
    # Within six steps it is not tried six times.
    assert capsys.readouterr().out.count("0xA900") == 1
    queue.close()


def test_one_process_a_folder(tmp_path):
    queue = Queue(tmp_path)
    with pytest.raises(UserError, match="in use by another service"):
        Queue(tmp_path)
    queue.close()
    Queue(tmp_path).close()
