import contextlib
import errno
import functools
import importlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tfds_builder.commandline.command import follow_parent
from tfds_builder.commandline.errors import UserError
from tfds_builder.workers import Lost, WorkerPool

PROGRAM = Path(__file__).parent / "worker_tasks.py"


@pytest.fixture(autouse=True)
def _findable_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PROGRAM.parent)


@pytest.fixture
def tasks(_findable_tasks: None) -> ModuleType:
    return importlib.import_module("worker_tasks")


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(2, step_seconds=30, memory_bytes=256 << 20) as pool:
        yield pool


@pytest.fixture
def hasty_pool() -> Iterator[WorkerPool]:
    with WorkerPool(2, step_seconds=0.5, memory_bytes=256 << 20) as pool:
        yield pool


def never(task: object, lost: Lost) -> None:
    raise AssertionError((task, lost))


def give_up(task: object, lost: Lost) -> None:
    return None


class Recorder:
    """Runs a task again without the step that was lost, and keeps what was said of it."""

    def __init__(self, tasks: ModuleType) -> None:
        self.losses: list[Lost] = []
        self._change = tasks.without_the_lost_step

    def __call__(self, steps: tuple, lost: Lost) -> tuple:
        self.losses.append(lost)
        return self._change(steps, lost)


def running(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_results_come_in_the_order_of_uneven_tasks(pool, tasks):
    rng = random.Random(5)
    uneven = [(number, rng.choice([0, 0, 0.02, 0.05])) for number in range(60)]
    assert list(pool.map(tasks.double_after, uneven, never)) == [2 * n for n in range(60)]


def test_a_pool_serves_one_map_after_the_other_with_the_same_workers(pool, tasks):
    first = set(pool.map(tasks.process_id, range(20), never))
    second = set(pool.map(tasks.process_id, range(20), never))
    assert second <= first
    assert len(first) <= 2
    assert os.getpid() not in first


def test_no_tasks_give_no_results(pool, tasks):
    assert list(pool.map(tasks.double, [], never)) == []


def test_tasks_and_results_larger_than_a_pipe_pass(pool, tasks):
    data = random.Random(3).randbytes(5_000_000)
    assert list(pool.map(tasks.total, [data] * 3, never)) == [sum(data)] * 3
    lengths = [3_000_000, 0, 7_000_000]
    assert [len(r) for r in pool.map(tasks.bytes_of_length, lengths, never)] == lengths


def test_a_crash_costs_its_own_step_alone(pool, tasks):
    recorder = Recorder(tasks)
    work = [tuple((10 * task + step, "fine") for step in range(5)) for task in range(12)]
    work[4] = ((40, "fine"), (41, "crash"), (42, "fine"))
    results = list(pool.map(tasks.run_steps, work, recorder))
    assert recorder.losses == [Lost(41, "the decoder crashed")]
    assert results[4] == [40, 42]
    others = [[10 * task + step for step in range(5)] for task in range(12) if task != 4]
    assert results[:4] + results[5:] == others


def test_a_crash_before_the_first_step_is_retried_in_a_new_worker(pool, tasks):
    losses = []

    def change(task: str, lost: Lost) -> str:
        losses.append(lost)
        return "changed"

    earlier = list(pool.map(tasks.process_id, [0], never))
    (result,) = pool.map(tasks.crash_unannounced, ["crash"], change)
    assert losses == [Lost(None, "the decoder crashed")]
    assert result.startswith("changed in ")
    assert result != f"changed in {earlier[0]}"


@pytest.mark.parametrize("action", ["hang", "hang with the lock"])
def test_a_hang_is_ended_within_the_limit_and_its_step_named(hasty_pool, tasks, action):
    recorder = Recorder(tasks)
    work = [((1, "fine"), (2, action), (3, "fine")), ((4, "fine"),)]
    started = time.monotonic()
    assert list(hasty_pool.map(tasks.run_steps, work, recorder)) == [[1, 3], [4]]
    assert 0.5 <= time.monotonic() - started < 5
    assert recorder.losses == [Lost(2, "took longer than 0.5 s")]


def test_announcements_keep_a_long_task_alive(tasks):
    with WorkerPool(1, step_seconds=1, memory_bytes=256 << 20) as pool:
        work = [tuple((step, "slow") for step in range(5))]
        assert list(pool.map(tasks.run_steps, work, never)) == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("action", ["allocate", "map memory"])
def test_a_memory_hog_is_lost_and_its_worker_replaced(tasks, action):
    with WorkerPool(1, step_seconds=30, memory_bytes=256 << 20) as pool:
        recorder = Recorder(tasks)
        (before,) = pool.map(tasks.process_id, [0], never)
        work = [((1, "fine"), (2, action)), ((3, "fine"),)]
        assert list(pool.map(tasks.run_steps, work, recorder)) == [[1], [3]]
        assert recorder.losses == [Lost(2, "needed too much memory")]
        (after,) = pool.map(tasks.process_id, [0], never)
        assert before != after
        assert not running(before)


def test_a_result_within_the_memory_limit_passes_and_one_beyond_is_lost(pool, tasks):
    losses = []

    def shorten(length: int, lost: Lost) -> int:
        losses.append(lost)
        return 5

    lengths = [64 << 20, 300 << 20]
    results = pool.map(tasks.bytes_of_length, lengths, shorten)
    assert [len(result) for result in results] == [64 << 20, 5]
    assert losses == [Lost(None, "needed too much memory")]


def test_a_data_error_is_raised_with_its_message(pool, tasks):
    with pytest.raises(UserError, match=r"^scan\.dcm: no pixels$"):
        list(pool.map(tasks.run_steps, [((1, "data error"),)], never))
    assert list(pool.map(tasks.double, [4], never)) == [8]


def test_an_os_error_keeps_number_text_and_file(pool, tasks):
    with pytest.raises(FileNotFoundError) as raised:
        list(pool.map(tasks.run_steps, [((1, "file not found"),)], never))
    assert raised.value.errno == errno.ENOENT
    assert raised.value.strerror == os.strerror(errno.ENOENT)
    assert raised.value.filename == "missing/scan.dcm"


def test_of_several_errors_the_first_in_order_is_raised(pool, tasks):
    work = [((1, "slow"), (2, "data error")), ((3, "file not found"),)]
    with pytest.raises(UserError, match="scan"):
        list(pool.map(tasks.run_steps, work, never))


def test_a_bug_is_raised_with_its_traceback(pool, tasks):
    with pytest.raises(RuntimeError, match=r"(?s)in _raise_zero_division.*ZeroDivisionError"):
        list(pool.map(tasks.run_steps, [((1, "bug"),)], never))


def test_a_result_that_cannot_be_sent_is_a_bug(pool, tasks):
    with pytest.raises(RuntimeError, match=r"(?s)in _outcome.*lambda"):
        list(pool.map(tasks.unpicklable, [0], never))


def test_a_function_that_workers_cannot_find_is_a_bug(pool, tasks, monkeypatch):
    module = ModuleType("module_of_the_parent_alone")
    exec("def function(task, announce): ...", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(RuntimeError, match="ModuleNotFoundError"):
        list(pool.map(module.function, [0], never))


def test_partial_functions_run(pool, tasks):
    assert list(pool.map(functools.partial(tasks.add, 7), [1, 2], never)) == [8, 9]


def test_workers_leave_an_interrupt_to_their_parent(pool, tasks):
    assert list(pool.map(tasks.run_steps, [((1, "interrupt"), (2, "slow"))], never)) == [[1, 2]]


def test_many_crashes_in_a_row_end(pool, tasks):
    recorder = Recorder(tasks)
    work = [((2 * task, "crash"), (2 * task + 1, "fine")) for task in range(50)]
    results = list(pool.map(tasks.run_steps, work, recorder))
    assert results == [[2 * task + 1] for task in range(50)]
    assert sorted(lost.step for lost in recorder.losses) == list(range(0, 100, 2))


def test_few_tasks_are_drawn_ahead(pool, tasks):
    drawn = 0

    def draw() -> Iterator[int]:
        nonlocal drawn
        for number in range(200):
            drawn += 1
            yield number

    results = pool.map(tasks.double, draw(), never)
    assert drawn == 0
    for yielded, _ in enumerate(results):
        assert drawn <= yielded + 8
    assert drawn == 200


def test_a_task_given_up_ends_in_one_line(pool, tasks):
    message = r"^step 6 was given up: the decoder crashed$"
    with pytest.raises(UserError, match=message):
        list(pool.map(tasks.run_steps, [((5, "fine"), (6, "crash"))], give_up))
    assert list(pool.map(tasks.double, [4], never)) == [8]


def test_an_error_raised_by_retry_passes(pool, tasks):
    def refuse(task: object, lost: Lost) -> None:
        raise UserError(f"row {lost.step}: {lost.reason}")

    with pytest.raises(UserError, match=r"^row 6: the decoder crashed$"):
        list(pool.map(tasks.run_steps, [((6, "crash"),)], refuse))


def test_workers_that_end_at_their_start_are_not_started_for_ever(pool, tasks, monkeypatch):
    monkeypatch.setattr("tfds_builder.workers._work", os._exit)  # Too many arguments.
    with pytest.raises(UserError, match="end as they start"):
        list(pool.map(tasks.double, range(9), never))


def test_an_abandoned_map_leaves_the_pool_fit_for_the_next(pool, tasks):
    work = [((1, "fine"),)] + 5 * [((2, "hang"),)]
    results = pool.map(tasks.run_steps, work, never)
    assert next(results) == [1]
    with pytest.raises(RuntimeError, match="has not ended"):
        next(pool.map(tasks.double, [4], never))
    results.close()
    assert list(pool.map(tasks.double, range(5), never)) == [0, 2, 4, 6, 8]


def test_an_error_among_the_tasks_passes(pool, tasks):
    def draw() -> Iterator[int]:
        yield 1
        raise UserError("row 2: no path")

    with pytest.raises(UserError, match="row 2"):
        list(pool.map(tasks.double, draw(), never))


@pytest.mark.parametrize("by_error", [False, True])
def test_nothing_is_left_when_the_context_is_left(tasks, by_error):
    with WorkerPool(1, step_seconds=9, memory_bytes=256 << 20) as pool:
        list(pool.map(tasks.double, [0], never))  # Starts the fork server, which stays.
    descriptors = sorted(os.listdir("/proc/self/fd"))
    expected = pytest.raises(KeyboardInterrupt) if by_error else contextlib.nullcontext()
    with expected, WorkerPool(2, step_seconds=60, memory_bytes=256 << 20) as pool:
        process_ids = set(pool.map(tasks.process_id, range(30), never))
        results = pool.map(
            tasks.run_steps, [((1, "fine"),)] + [((2, "hang with the lock"),)] * 9, never
        )
        next(results)
        started = time.monotonic()
        if by_error:
            raise KeyboardInterrupt
    assert time.monotonic() - started < 5
    assert not any(map(running, process_ids))
    assert multiprocessing.active_children() == []
    assert sorted(os.listdir("/proc/self/fd")) == descriptors


def _start_program(function: str, folder: Path) -> subprocess.Popen:
    """Starts a program with a pool; two files in the folder say that both tasks are at work."""
    program = subprocess.Popen(
        [sys.executable, PROGRAM, function, folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=PROGRAM.parents[2],
    )
    wait_until(lambda: len(list(folder.iterdir())) == 2, 60)
    return program


def test_workers_that_hang_in_c_end_with_a_killed_parent(tmp_path):
    with _start_program("hang", tmp_path) as program:
        process_ids = [int(path.name) for path in tmp_path.iterdir()]
        assert all(map(running, process_ids))
        program.kill()
    wait_until(lambda: not any(map(running, process_ids)))


def test_a_program_that_was_stopped_for_a_while_does_not_take_its_workers_for_hung(tmp_path):
    with _start_program("count_slowly", tmp_path) as program:
        os.killpg(program.pid, signal.SIGSTOP)
        time.sleep(1.2)
        os.killpg(program.pid, signal.SIGCONT)
        assert program.stdout.read() == "2 0\n"


def test_what_decoders_print_is_not_seen(tmp_path):
    with _start_program("make_noise", tmp_path) as program:
        assert program.communicate() == ("2 0\n", "")


def test_a_process_that_is_no_worker_has_no_parent_to_follow():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError, match="no worker"):
        follow_parent()
    assert signal.getsignal(signal.SIGINT) is before
