import errno
import json
import os
import signal
import sys
import threading
import time

import pytest

from dscint_jax.evaluate.watch import HeldCheckpoints, watch
from dscint_jax.run.checkpoint import complete_steps
from dscint_jax.run.lock import take_away
from dscint_jax.run.provenance import is_complete
from dscint_jax.run.trackers.json_lines import read_lines
from dscint_jax.training.train import train
from tests.dscint_jax.runs import STEPS, command, largest_file_read, start
from tfds_builder.commandline.errors import UserError

EVERY = 5
ALL = list(range(EVERY, STEPS + 1, EVERY))


def _watcher(workdir):
    words = ["-m", "dscint_jax.evaluate", "--workdir", str(workdir), "--watch"]
    return start([sys.executable, *words])


def _history(workdir):
    return read_lines(workdir / "eval" / "test" / "history.jsonl")


@pytest.mark.slow
def test_every_checkpoint_of_a_training_beside_is_evaluated_once(data_dir, tmp_path):
    workdir = tmp_path / "run"
    watcher = _watcher(workdir)
    assert watcher.stdout.readline().startswith("waiting for the first checkpoint")
    training = start(command(data_dir, workdir))
    output, _ = watcher.communicate(timeout=200)
    printed, _ = training.communicate(timeout=60)
    assert training.returncode == 0, printed
    assert watcher.returncode == 0, output
    assert [line["step"] for line in _history(workdir)] == ALL
    result = json.loads((workdir / "eval" / "test" / "metrics.json").read_text())
    best = next(line for line in _history(workdir) if line["step"] == result["step"])
    for name in ("accuracy", "f1", "loss"):
        assert best[name] == result[name]


@pytest.mark.exhaustive
def test_killed_and_started_again_it_goes_on_where_it_was(data_dir, tmp_path):
    workdir = tmp_path / "run"
    training = start(command(data_dir, workdir, "--config.keep_last=100"))
    watcher = _watcher(workdir)
    while len(_history(workdir)) < 2:
        assert watcher.poll() is None
        time.sleep(0.05)
    watcher.send_signal(signal.SIGKILL)
    watcher.communicate()
    before = _history(workdir)
    output, _ = _watcher(workdir).communicate(timeout=200)
    training.communicate(timeout=60)
    assert [line["step"] for line in _history(workdir)] == ALL, output
    assert _history(workdir)[: len(before)] == before


def test_checkpoint_that_cannot_be_evaluated_does_not_end_the_watch(config, tmp_path, capsys):
    workdir = tmp_path / "run"
    train(config.replaced({"keep_last": 9}), workdir)
    first, *others = sorted(map(int, os.listdir(workdir / "checkpoints")))
    assert others
    path = largest_file_read(workdir / "checkpoints" / str(first))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (result,) = watch(workdir, splits=["test"])
    history = {line["step"]: line for line in _history(workdir)}
    assert "damaged" in history[first]["error"]
    assert f"test, step {first} could not be evaluated" in capsys.readouterr().out
    assert [step for step, line in history.items() if "error" not in line] == others
    assert result["step"] in others
    # A failure is tried again, what was evaluated is not.
    watch(workdir, splits=["test"])
    assert [line["step"] for line in _history(workdir)] == [*sorted(history), first]


@pytest.mark.slow
def test_every_split_and_data_set_has_a_history_of_its_own(config, make_data_set, tmp_path, capsys):
    workdir = tmp_path / "run"
    own = make_data_set(train=40, validation=12, test=12)
    other = make_data_set(test=7)
    train(config.replaced({"keep_last": 9, "data.dir": str(own), "data.pool": 1}), workdir)
    steps = sorted(map(int, os.listdir(workdir / "checkpoints")))
    # Of one of the two, a checkpoint was evaluated before.
    folders = [workdir / "eval" / "test", workdir / "eval" / other.name / "test"]
    watch(workdir, splits=["test"])
    before = (folders[0] / "history.jsonl").read_text()
    results = watch(workdir, splits=["test"], external=[other])
    assert [result["support"] for result in results] == [12, 7]
    assert (folders[0] / "history.jsonl").read_text() == before
    for folder in folders:
        assert [line["step"] for line in read_lines(folder / "history.jsonl")] == steps
    assert f"{other.name} test, step {steps[0]}: accuracy" in capsys.readouterr().out


def test_readings_of_mirror_images_are_a_history_of_their_own(config, tmp_path):
    train(config, tmp_path / "run")
    steps = len(os.listdir(tmp_path / "run" / "checkpoints"))
    for mirror in (False, True, False):
        watch(tmp_path / "run", splits=["test"], mirror=mirror)
    found = [line["test_time_augmentation"] for line in _history(tmp_path / "run")]
    assert found == [None] * steps + ["mirror"] * steps


def test_split_that_is_none_is_not_waited_for(tmp_path):
    with pytest.raises(UserError, match="no split 'val'"):
        watch(tmp_path / "run", splits=["val"])


def test_disk_that_fails_for_a_moment_ends_no_holding_of_checkpoints(tmp_path, monkeypatch):
    fails = [True]

    def steps_of(folder):
        if fails and folder.parent == tmp_path:
            fails.pop()
            raise OSError(errno.ESTALE, "Stale file handle")
        return complete_steps(folder)

    monkeypatch.setattr("dscint_jax.evaluate.watch.complete_steps", steps_of)
    _checkpoint(tmp_path, 1)
    with HeldCheckpoints(tmp_path) as checkpoints:
        assert next(iter(checkpoints)) == 1
    assert not fails


def _checkpoint(folder, step):
    """What a reader locks of a checkpoint."""
    place = folder / "checkpoints" / f"{step}"
    part = place.with_name(f"{step}.part")
    part.mkdir(parents=True)
    (part / "_CHECKPOINT_METADATA").write_text("{}")
    part.rename(place)
    return place


def _complete(workdir):
    attempt = {"dataset_fingerprint": "abc", "ended": {"why": "completed", "step": 3}}
    (workdir / "provenance.json").write_text(json.dumps([attempt]))


def test_checkpoint_is_held_from_when_it_is_seen_until_the_next_is_asked_for(tmp_path):
    places = {step: _checkpoint(tmp_path, step) for step in (1, 3)}
    with HeldCheckpoints(tmp_path) as checkpoints:
        steps = iter(checkpoints)
        assert next(steps) == 1
        assert not take_away(places[1], tmp_path / "gone")
        assert not take_away(places[3], tmp_path / "gone")
        assert next(steps) == 3
        assert take_away(places[1], tmp_path / "gone too")
        threading.Timer(0.5, _checkpoint, (tmp_path, 4)).start()
        assert next(steps) == 4
        _checkpoint(tmp_path, 5)
        _complete(tmp_path)
        assert list(steps) == [5]


def test_run_is_complete_when_its_newest_attempt_says_so(tmp_path):
    assert not is_complete(tmp_path)
    for ended, expected in (
        (None, False),
        ({"why": "SIGTERM"}, False),
        ({"why": "completed"}, True),
    ):
        attempt = {"dataset_fingerprint": "abc", "ended": ended}
        (tmp_path / "provenance.json").write_text(json.dumps([attempt]))
        assert is_complete(tmp_path) == expected
    (tmp_path / "provenance.json").write_text("[{")
    with pytest.raises(UserError, match="not valid JSON"):
        is_complete(tmp_path)


def test_watch_that_is_interrupted_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    watcher = _watcher(tmp_path)
    assert "waiting" in watcher.stdout.readline()
    watcher.send_signal(signal.SIGINT)
    output, _ = watcher.communicate(timeout=30)
    assert (watcher.returncode, output) == (130, "interrupted\n")
