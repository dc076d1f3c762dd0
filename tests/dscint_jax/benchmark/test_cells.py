import dataclasses
import json
import os
import re
import signal
import subprocess
import sys

import pytest

from dscint_jax.benchmark import cells
from dscint_jax.benchmark.cells import (
    FAILURE,
    Stopping,
    _claimed,
    _reason,
    chosen_rate,
    folder_of,
    open_cells,
    retry_failed,
    run_cells,
)
from dscint_jax.benchmark.plan import Cell
from dscint_jax.run import lock
from tfds_builder.commandline.errors import UserError


@pytest.fixture
def tried(plan, tmp_path, monkeypatch):
    """A plan with three learning rates, of which two were tried."""
    plan = dataclasses.replace(plan, learning_rates=(1e-4, 1e-3, 1e-2))
    scores = {1e-4: [0.3, 0.5], 1e-3: [0.7, 0.6]}
    for rate, values in scores.items():
        folder = folder_of(tmp_path, Cell("dscint", "patient", rate, 0))
        folder.mkdir(parents=True)
        lines = [{"step": n, "validation_f1": value} for n, value in enumerate(values)]
        (folder / "train_metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setattr(cells, "is_trained", lambda w, c: (folder_of(w, c)).exists())
    return plan


def test_the_rate_with_the_best_validation_is_taken_once_all_were_tried(tried, tmp_path):
    assert chosen_rate(tried, tmp_path, "dscint") is None
    last = folder_of(tmp_path, Cell("dscint", "patient", 1e-2, 0))
    last.mkdir(parents=True)
    (last / FAILURE).write_text("the loss is not finite\n")
    assert chosen_rate(tried, tmp_path, "dscint") == 1e-3
    assert chosen_rate(tried, tmp_path, "no_attention") == 1e-3
    assert chosen_rate(tried, tmp_path, "alexnet") is None


def test_test_splits_are_read_once_rates_are_chosen(tried, tmp_path):
    todo = open_cells(tried, tmp_path)
    assert {cell.name for cell, _ in todo} == {"dscint", "alexnet"}
    assert not any(test for _, test in todo)
    folder_of(tmp_path, Cell("dscint", "patient", 1e-2, 0)).mkdir(parents=True)
    todo = open_cells(tried, tmp_path)
    assert [cell.name for cell, test in todo if not test] == ["alexnet"] * 3
    tested = [cell for cell, test in todo if test]
    assert {cell.learning_rate for cell in tested} == {1e-3}
    assert [cell.seed for cell in tested] == sorted(cell.seed for cell in tested)
    assert len(tested) == 6


def test_what_is_complete_or_failed_is_not_run(plan, filled):
    assert open_cells(plan, filled) == []
    cell = Cell("alexnet", "patient", 1e-3, 1)
    (folder_of(filled, cell) / "eval" / "test" / "metrics.json").unlink()
    assert open_cells(plan, filled) == [(cell, True)]
    (folder_of(filled, cell) / FAILURE).write_text("out of memory\n")
    assert open_cells(plan, filled) == []
    retry_failed(filled)
    assert open_cells(plan, filled) == [(cell, True)]


def test_a_cell_is_claimed_once_and_not_while_somebody_trains_there(tmp_path):
    with _claimed(tmp_path / "cell") as mine, _claimed(tmp_path / "cell") as again:
        assert (mine, again) == (True, False)
    with lock.held(tmp_path / "cell"), _claimed(tmp_path / "cell") as mine:
        assert not mine
    with _claimed(tmp_path / "cell") as mine:
        assert mine


def test_the_folder_of_another_plan_is_refused(plan, filled):
    folder = folder_of(filled, Cell("dscint", "patient", 1e-3, 0))
    other = plan.base.replaced({"steps": 99, "optimizer.learning_rate": 1e-3})
    (folder / "benchmark.json").write_text(json.dumps(other.to_dict()))
    with pytest.raises(UserError, match=r"config.steps of dscint, patient.* is 99 there and 12"):
        run_cells(plan, filled)


@pytest.mark.parametrize(
    "status, log, words",
    [
        (2, "step 3\nerror: the loss is not finite\nsee below", "the loss is not finite"),
        (-9, "step 3", "SIGKILL.*out of memory"),
        (1, "step 3\nValueError: x", "ValueError: x"),
        (1, "", "ended with status 1"),
    ],
)
def test_the_reason_of_a_failure_is_what_its_process_said_last(tmp_path, status, log, words):
    (tmp_path / "log.txt").write_text("error: of an earlier attempt\n" + log)
    reason = _reason(status, tmp_path / "log.txt", len("error: of an earlier attempt\n"))
    assert re.search(words, reason)


def test_a_signal_reaches_all_processes_and_then_ends_this_one():
    words = [sys.executable, "-c", "import time; time.sleep(60)"]
    with Stopping() as stopping:
        processes = [subprocess.Popen(words, start_new_session=True) for _ in range(2)]
        for process in processes:
            stopping.watch(process)
        os.kill(os.getpid(), signal.SIGTERM)
        assert [process.wait(timeout=20) for process in processes] == [-signal.SIGTERM] * 2
        with pytest.raises(SystemExit) as ended:
            stopping.check()
    assert ended.value.code == 128 + signal.SIGTERM
