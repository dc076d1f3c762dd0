import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dscint_jax.run.checkpoint import REPLACED, Checkpointer, complete_steps, completed_step
from dscint_jax.run.lock import take_away
from dscint_jax.training.state import TrainState, evaluated_items
from tests.dscint_jax.runs import largest_file_read
from tfds_builder.commandline.errors import UserError

OPTIMIZER = optax.adam(1e-3)


def _state(step):
    random = np.random.default_rng(step)
    kernel = jnp.array(random.normal(size=(40, 50)), jnp.float32)
    params = nnx.State({"kernel": kernel, "bias": jnp.ones(3)})
    mean = jnp.array(random.normal(size=7), jnp.bfloat16)
    batch_stats = nnx.State({"mean": mean, "count": jnp.int32(step)})
    return TrainState(jnp.int32(step), params, batch_stats, OPTIMIZER.init(params))


def _save(workdir, scores, **kept):
    checkpointer = Checkpointer(workdir, **kept)
    for step, f1 in scores.items():
        checkpointer.save(step, _state(step).items, None if f1 is None else {"f1": f1, "loss": 1.0})
    checkpointer.close()


def _like(state):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def _newest(checkpointer, like):
    items = checkpointer.restore_newest(like.items)
    return items and TrainState.from_items(items)


def _weights(checkpointer, which, like):
    step, weights = checkpointer.restore_first(
        which, evaluated_items(like.params, like.batch_stats)
    )
    return step, weights["params"], weights["batch_stats"]


def _assert_same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def _names(workdir, folder="checkpoints"):
    return sorted(path.name for path in (workdir / folder).iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    _save(workdir, {1: 0.5, 2: 0.9, 3: 0.7}, keep_last=3)
    return workdir


@pytest.fixture
def workdir(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_state_comes_back_bit_for_bit(workdir):
    _assert_same(_newest(Checkpointer(workdir), _like(_state(0))), _state(3))


def test_averages_come_back_and_are_what_an_evaluator_restores(tmp_path):
    state = dataclasses.replace(_state(4), ema=(_state(5).params, _state(5).batch_stats))
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(4, state.items, {"f1": 0.5})
    checkpointer.close()
    reader = Checkpointer(tmp_path, read_only=True)
    assert reader.is_whole(4)
    like = _like(state)
    _assert_same(_newest(reader, like), state)
    step, *evaluated = _weights(reader, "best", like)
    assert step == 4
    _assert_same(tuple(evaluated), state.ema)


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ({"keep_last": 1}, ["2", "5"]),
        ({"keep_last": 2}, ["2", "4", "5"]),
        ({"keep_last": 1, "keep_best": 2}, ["2", "3", "5"]),
        ({"keep_last": 3, "keep_best": 1}, ["2", "3", "4", "5"]),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, kept, expected):
    _save(tmp_path, {1: 0.1, 2: 0.9, 3: 0.8, 4: None, 5: 0.2}, **kept)
    assert _names(tmp_path) == expected


def test_best_is_the_highest_score_and_the_later_of_equals(tmp_path):
    _save(tmp_path, {1: 0.9, 2: 0.9, 3: 0.2, 4: None}, keep_last=4)
    checkpointer = Checkpointer(tmp_path, read_only=True)
    assert (checkpointer._best_first()[0], checkpointer.last_step()) == (2, 4)


def _largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "a bit of the weights flipped": lambda folder: _flip(largest_file_read(folder)),
    "the weights truncated": lambda folder: _cut(largest_file_read(folder)),
    "the weights' file gone": lambda folder: largest_file_read(folder).unlink(),
    "the manifest truncated": lambda folder: _cut(folder / "model" / "manifest.ocdbt"),
    "the tree truncated": lambda folder: _cut(folder / "model" / "_METADATA"),
    "model gone": lambda folder: shutil.rmtree(folder / "model"),
    "record gone": lambda folder: shutil.rmtree(folder / "record"),
    "record truncated": lambda folder: _cut(_largest(folder / "record")),
    "a bit of the record flipped": lambda folder: _flip(_largest(folder / "record")),
    "all gone but the folder": lambda folder: [shutil.rmtree(p) for p in folder.glob("*/")],
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_checkpoint_gives_way_to_the_one_before(workdir, capsys, case):
    DAMAGE[case](workdir / "checkpoints" / "3")
    assert not Checkpointer(workdir, read_only=True).is_whole(3)
    assert Checkpointer(workdir, read_only=True).is_whole(2)
    checkpointer = Checkpointer(workdir, keep_last=2)
    restored = _newest(checkpointer, _like(_state(0)))
    _assert_same(restored, _state(2))
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "warning: checkpoint" in printed
    assert "/3 is damaged" in printed
    assert _names(workdir, "damaged") == ["3"]
    # Its place is free again.
    checkpointer.save(3, _state(3).items, {"f1": 0.3})
    checkpointer.close()
    assert Checkpointer(workdir, read_only=True).is_whole(3)


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_best_checkpoint_gives_way_to_the_next_best(workdir, capsys, case):
    DAMAGE[case](workdir / "checkpoints" / "2")
    like = _like(_state(0))
    checkpointer = Checkpointer(workdir, read_only=True)
    step, params, batch_stats = _weights(checkpointer, "best", like)
    assert step == 3
    _assert_same((params, batch_stats), (_state(3).params, _state(3).batch_stats))
    assert "/2 is damaged" in capsys.readouterr().out
    assert _names(workdir) == ["1", "2", "3"]


@pytest.mark.parametrize("damage", [_flip, _cut, lambda path: path.unlink()])
def test_whatever_file_is_damaged_what_is_restored_is_one_that_was_saved(whole, tmp_path, damage):
    folder = whole / "checkpoints" / "3"
    names = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    given_way = set()
    for n, name in enumerate(names):
        workdir = tmp_path / str(n)
        shutil.copytree(whole, workdir)
        damage(workdir / "checkpoints" / "3" / name)
        restored = _newest(Checkpointer(workdir), _like(_state(0)))
        # Some files are not needed to read the arrays.
        _assert_same(restored, _state(int(restored.step)))
        given_way.add(int(restored.step))
        assert (workdir / "damaged" / "3").exists() == (int(restored.step) == 2)
    assert given_way == {2, 3}


def test_damaged_optimizer_does_not_keep_an_evaluator_from_the_network(workdir):
    shutil.rmtree(workdir / "checkpoints" / "3" / "optimizer")
    like = _like(_state(0))
    checkpointer = Checkpointer(workdir, read_only=True)
    assert _weights(checkpointer, "latest", like)[0] == 3
    assert not checkpointer.is_whole(3)


def test_damaged_checkpoint_that_was_asked_for_by_its_step_is_an_error(workdir):
    _flip(largest_file_read(workdir / "checkpoints" / "3"))
    like = _like(_state(0))
    with pytest.raises(UserError, match="checkpoint 3 is damaged; choose another"):
        _weights(Checkpointer(workdir, read_only=True), "3", like)


def test_where_all_are_damaged_nothing_is_restored_and_all_are_set_aside(workdir):
    for step in ("1", "2", "3"):
        _cut(largest_file_read(workdir / "checkpoints" / step))
    assert _newest(Checkpointer(workdir), _like(_state(0))) is None
    assert _names(workdir, "damaged") == ["1", "2", "3"]


def test_damaged_twice_at_the_same_step_neither_is_lost(workdir):
    for _ in range(2):
        _cut(largest_file_read(workdir / "checkpoints" / "3"))
        checkpointer = Checkpointer(workdir, keep_last=2)
        _newest(checkpointer, _like(_state(0)))
        checkpointer.save(3, _state(3).items)
        checkpointer.close()
    assert _names(workdir, "damaged") == ["3", "3.1"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda p: {**p, "kernel": p["kernel"][:, :9]}, "kernel is 40x50 float32 there and 40x9"),
        (lambda p: {**p, "kernel": p["kernel"].astype(jnp.bfloat16)}, "kernel is .* bfloat16 here"),
        (lambda p: {**p, "scale": jnp.ones(3)}, "scale is nothing there"),
        (lambda p: {"kernel": p["kernel"]}, "bias is 3 float32 there and nothing here"),
    ],
)
def test_checkpoint_of_another_network_is_no_damage(workdir, change, expected):
    state = _state(0)
    params = nnx.State(change(dict(state.params)))
    other = TrainState(state.step, params, state.batch_stats, state.optimizer)
    with pytest.raises(UserError, match=f"does not fit .*{expected}"):
        _newest(Checkpointer(workdir), _like(other))
    assert _names(workdir) == ["1", "2", "3"]


def test_record_tells_the_scores(workdir):
    record = json.loads((workdir / "checkpoints" / "2" / "record" / "metadata").read_text())
    assert record["scores"] == {"f1": 0.9, "loss": 1.0}


READER = """
import sys
from pathlib import Path
from dscint_jax.run.lock import pinned

with pinned(Path(sys.argv[1])):
    print("reading", flush=True)
    sys.stdin.read()
"""


def _start_reading(folder):
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert reader.stdout.readline() == b"reading\n"
    return reader


def test_checkpoint_that_is_being_read_stays_until_the_save_after(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, _state(1).items)
    checkpointer.save(2, _state(2).items)
    reader = _start_reading(tmp_path / "checkpoints" / "1")
    checkpointer.save(3, _state(3).items)
    assert _names(tmp_path)[:1] == ["1"]
    assert checkpointer.steps()[0] != 1
    reader.communicate()
    checkpointer.close()
    assert _names(tmp_path) == ["3"]


def test_killed_reader_keeps_nothing(tmp_path):
    _save(tmp_path, {1: None})
    reader = _start_reading(tmp_path / "checkpoints" / "1")
    reader.kill()
    reader.communicate()
    assert take_away(tmp_path / "checkpoints" / "1", tmp_path / "gone")


def test_what_a_kill_leaves_of_a_deletion_is_no_checkpoint_and_is_deleted(workdir):
    (workdir / "checkpoints" / "1").rename(workdir / "checkpoints" / f"1{REPLACED}")
    assert Checkpointer(workdir, read_only=True).steps() == [2, 3]
    assert completed_step(workdir) == 3
    Checkpointer(workdir, keep_last=3).close()
    assert _names(workdir) == ["2", "3"]


@pytest.mark.parametrize("moment", ["before", "the record is read", "the arrays are read"])
@pytest.mark.parametrize("which", ["best", "latest"])
def test_checkpoint_replaced_before_it_was_read_gives_way_without_talk_of_damage(
    workdir, capsys, monkeypatch, moment, which
):
    # As on a file system without locks, or by a training of an early version.
    reader = Checkpointer(workdir, read_only=True)
    assert reader.steps() == [1, 2, 3]
    chosen, left = {"best": ("2", 3), "latest": ("3", 2)}[which]
    gone = workdir / "checkpoints" / chosen
    if moment == "before":
        shutil.rmtree(gone)
    else:
        name = {"the record is read": "_record", "the arrays are read": "_check_fit"}[moment]
        method, seen = getattr(reader, name), []

        def replaced_first(step, *rest):
            seen.append(step)
            # The scores are looked at before one is chosen.
            if str(step) == chosen and (
                name == "_check_fit" or seen.count(step) == 2 - (which == "latest")
            ):
                gone.rename(workdir / "elsewhere")
            return method(step, *rest)

        monkeypatch.setattr(reader, name, replaced_first)
    like = _like(_state(0))
    step, params, _ = _weights(reader, which, like)
    assert step == left
    _assert_same(params, _state(left).params)
    printed = capsys.readouterr().out
    assert "damaged" not in printed
    assert printed.count("was replaced meanwhile; taking the newer one") == (moment != "before")


def test_step_that_was_asked_for_and_is_gone_is_named_with_those_that_are_there(workdir):
    reader = Checkpointer(workdir, read_only=True)
    shutil.rmtree(workdir / "checkpoints" / "1")
    like = _like(_state(0))
    with pytest.raises(UserError, match=r"--checkpoint 1: .* holds 'best', 'latest' and 2, 3"):
        _weights(reader, "1", like)


SAVER = """
import sys
from pathlib import Path
from dscint_jax.run.checkpoint import Checkpointer
from tests.dscint_jax.run.test_checkpoint import _state

checkpointer = Checkpointer(Path(sys.argv[1]))
for step in range(1, 100_000):
    checkpointer.save(step, _state(step).items, {"f1": step % 7 / 7})
"""


@pytest.mark.parametrize("locks", [True, False])
def test_readers_beside_a_process_that_saves_without_pause_never_fail(tmp_path, monkeypatch, locks):
    if not locks:
        monkeypatch.setattr("dscint_jax.run.lock._take", lambda descriptor, kind: True)
    words = [sys.executable, "-c", SAVER, str(tmp_path)]
    saver = subprocess.Popen(words, cwd=Path(__file__).parent.parent.parent.parent)
    try:
        deadline = time.monotonic() + 120
        while len(complete_steps(tmp_path / "checkpoints")) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        like, steps, n = _like(_state(0)), set(), 0
        # How many it saves meanwhile is the machine's affair.
        while n < 30 or (len(steps) <= 5 and time.monotonic() < deadline):
            reader = Checkpointer(tmp_path, read_only=True)
            which = ("best", "latest")[n % 2]
            n += 1
            step, params, batch_stats = _weights(reader, which, like)
            reader.close()
            _assert_same((params, batch_stats), (_state(step).params, _state(step).batch_stats))
            steps.add(step)
        assert saver.poll() is None
        assert len(steps) > 5
    finally:
        saver.kill()
        saver.wait()


PLACES = [
    *("[", "fold [1]", "widths=[8,8]", "*", "**", "a?b", "{a,b}", "!(x)", "~", "$HOME", "%20"),
    *(
        "#1",
        "a|b",
        "a:b",
        "zip:",
        "&",
        ";",
        "'q\"",
        "nl\nx",
        "tab\t",
        " a ",
        "-x",
        "--workdir",
        ".x",
    ),
    *(
        "ü",
        "u\u0308",
        "日本語",
        "🦴",
        "x" * 255,
        "12",
        "1.orbax-checkpoint-tmp",
        "checkpoints",
        "@",
        "=",
    ),
]


@pytest.mark.parametrize("name", PLACES, ids=ascii)
def test_checkpoints_come_back_from_any_folder(tmp_path, name):
    workdir = tmp_path / name / "run"
    _save(workdir, {1: 0.5, 2: 0.7})
    assert _names(workdir) == ["2"]
    _assert_same(_newest(Checkpointer(workdir), _like(_state(0))), _state(2))
    assert not (workdir / "damaged").exists()
