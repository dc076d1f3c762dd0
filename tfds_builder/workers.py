"""A pool of worker processes that outlives its workers.

In: a function, its tasks, and what to do about a task that cost its worker. Out: the results, in
order. For files from elsewhere, whose decoders in C may crash, never return or eat the memory.
"""

import errno
import fcntl
import logging
import math
import multiprocessing
import os
import pickle
import re
import resource
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

from tfds_builder.commandline.command import follow_parent, parent_of_worker
from tfds_builder.commandline.errors import UserError

Announce = Callable[[int], None]
Task = TypeVar("Task")
Result = TypeVar("Result")

_START_SECONDS = 120  # A worker may import much from a slow disk.
_FALSE_STARTS = 3
_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Lost:
    """Why a task ended without a result: its worker died, hung or ran out of memory.

    `step` is what the worker had announced last, None if nothing.
    """

    step: int | None
    reason: str


@dataclass
class _Job:
    function: Callable[[Any, Announce], Any]
    task: Any
    retry: Callable[[Any, Lost], Any]
    outcome: tuple[str, Any] | None = None


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    job: _Job | None
    deadline: float
    begun: bool = False
    step: int | None = None


class WorkerPool:
    """Runs tasks in processes; a task that crashes, hangs or hogs memory costs itself alone.

    A context manager; leaving it ends all workers at once. Workers start when there is work. They
    print nothing, leave Ctrl-C to this process and end when it ends, however it ended.

    Args:
      workers: the number of processes.
      step_seconds: the longest that a step of a task may take.
      memory_bytes: what a worker may allocate beyond what it holds at its start (Linux only).
      preload: modules that workers find already imported, so that a restart takes milliseconds. It
        should hold all that the functions import. Without effect where a process of the start
        method `forkserver` was started in this process before.
    """

    def __init__(
        self,
        workers: int,
        *,
        step_seconds: float,
        memory_bytes: int,
        preload: tuple[str, ...] = (),
    ) -> None:
        self._count = workers
        self._step_seconds = step_seconds
        self._memory_bytes = memory_bytes
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*preload, __name__])
        self._workers: dict[Connection, _Worker] = {}
        self._jobs: deque[_Job] = deque()
        self._waiting: deque[_Job] = deque()
        self._most_jobs = 2 * workers + 4
        self._clock = 0.0
        self._false_starts = 0

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        self._jobs.clear()
        self._end(self._workers.values())

    def map(
        self,
        function: Callable[[Task, Announce], Result],
        tasks: Iterable[Task],
        retry: Callable[[Task, Lost], Task | None],
    ) -> Iterator[Result]:
        """Yields `function(task, announce)` for each task, in the order of the tasks.

        The function calls `announce(step)` whenever it begins a new step; each step has its own
        `step_seconds`, as has the time before the first one. A task whose worker was lost goes to
        `retry(task, lost)`, and what that returns is run instead, as the first task of a new
        worker. Few tasks are drawn ahead of the results. An error is raised in the place of its
        task's result, whichever came first in time. One `map` at a time.

        Raises:
          UserError: the function raised it; `retry` returned None; workers cannot start.
          OSError: the function raised it.
          RuntimeError: the function raised anything else; the message holds the traceback.
        """
        if self._jobs:
            raise RuntimeError("another map of this pool has not ended")
        new_jobs = (_Job(function, task, retry) for task in tasks)
        try:
            while True:
                self._draw(new_jobs)
                if not self._jobs:
                    return
                first = self._jobs[0]
                self._look(0 if first.outcome else _LOOK_SECONDS)
                if first.outcome:
                    kind, value = first.outcome
                    if kind == "error":
                        raise value
                    yield value
                    self._jobs.popleft()
        finally:
            self._jobs.clear()
            self._waiting.clear()
            self._end(worker for worker in self._workers.values() if worker.job)

    def _draw(self, new_jobs: Iterator[_Job]) -> None:
        for job in islice(new_jobs, self._most_jobs - len(self._jobs)):
            self._jobs.append(job)
            self._waiting.append(job)
        self._feed()

    def _feed(self) -> None:
        """Gives waiting tasks to idle workers, then to new ones."""
        for worker in self._workers.values():
            if self._waiting and not worker.job:
                self._send(worker, self._waiting.popleft())
        while self._waiting and len(self._workers) < self._count:
            self._start(self._waiting.popleft())

    def _start(self, job: _Job) -> None:
        """Starts a worker; its job is sent when it says that it is ready."""
        connection, theirs = multiprocessing.Pipe()
        process = self._context.Process(
            target=_work, args=(theirs, self._memory_bytes), daemon=True
        )
        try:
            with _hidden_main_module(), _ignored_interrupt():
                process.start()
        except (OSError, EOFError) as error:
            connection.close()
            raise UserError(f"no worker process can be started: {error}") from None
        finally:
            theirs.close()  # The worker alone holds it, so its death is seen as the pipe's end.
        worker = _Worker(process, connection, job, self._clock + _START_SECONDS)
        self._workers[connection] = worker

    def _send(self, worker: _Worker, job: _Job) -> None:
        worker.job, worker.begun, worker.step = job, False, None
        worker.deadline = self._clock + _START_SECONDS
        message = ForkingPickler.dumps((job.function, job.task))
        with suppress(OSError):  # The worker is dead, which is noticed at the next look.
            worker.connection.send_bytes(message)

    def _look(self, seconds: float) -> None:
        """Waits for messages, hears them, then ends the workers that are overdue.

        The clock stands still between looks and never leaps, so that a build that was stopped for
        a while, or that was busy with the results, does not take its workers for hung.
        """
        nearest = min((worker.deadline for worker in self._workers.values()), default=math.inf)
        seconds = max(0.0, min(seconds, nearest - self._clock))
        started = time.monotonic()
        heard = wait(list(self._workers), seconds)
        self._clock += min(time.monotonic() - started, seconds)
        for connection in heard:
            if isinstance(connection, Connection):
                self._hear(self._workers[connection])
        for worker in list(self._workers.values()):
            if worker.deadline <= self._clock:
                self._replace(worker, f"took longer than {self._step_seconds:g} s")

    def _hear(self, worker: _Worker) -> None:
        try:
            message = worker.connection.recv_bytes()
        except (OSError, EOFError):
            self._replace(worker, "the decoder crashed")
            return
        if worker.job is None:
            raise RuntimeError("a worker spoke without a task")
        match pickle.loads(message):
            case "ready", _:
                self._send(worker, worker.job)
            case "step", step:
                self._false_starts = 0
                worker.begun, worker.step = True, step
                worker.deadline = self._clock + self._step_seconds
            case "memory", _:
                # Its decoder may have leaked, and the next task is not to pay for that.
                self._replace(worker, "needed too much memory")
            case outcome:
                worker.job.outcome = outcome
                worker.job, worker.deadline = None, math.inf
                self._feed()

    def _replace(self, worker: _Worker, reason: str) -> None:
        """Ends a worker, and has a new one do its job, changed if it had begun."""
        self._end([worker])
        job = worker.job
        if not job:
            return
        if worker.begun:
            lost = Lost(worker.step, reason)
            job.task = job.retry(job.task, lost)
            if job.task is None:
                where = "a task" if lost.step is None else f"step {lost.step}"
                job.outcome = "error", UserError(f"{where} was given up: {reason}")
                return
        else:
            self._false_starts += 1
            if self._false_starts == _FALSE_STARTS:
                raise UserError("worker processes end as they start (too little memory?)")
        self._start(job)

    def _end(self, workers: Iterable[_Worker]) -> None:
        workers = list(workers)
        for worker in workers:
            if worker.process.is_alive():  # Else its process id may be another's by now.
                worker.process.kill()
            del self._workers[worker.connection]
        for worker in workers:
            worker.process.join()
            worker.process.close()
            worker.connection.close()


@contextmanager
def _hidden_main_module() -> Iterator[None]:
    """Keeps workers from importing the command again, which takes longer than most of their tasks.

    Their functions are found in the modules that hold them, never in the main one.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _ignored_interrupt() -> Iterator[None]:
    """Starts processes that leave Ctrl-C to this one, the fork server among them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _work(connection: Connection, memory_bytes: int) -> None:
    """A worker's life: tasks in, results out, until it is killed or its parent is gone."""
    follow_parent()
    _end_with_parent()
    _be_silent()
    # What the modules that were imported beforehand compute takes one core.
    threadpool_limits(1, "blas")
    _limit_memory(memory_bytes)
    connection.send(("ready", None))
    while True:
        message = connection.recv_bytes()
        connection.send(("step", None))
        connection.send_bytes(_outcome(message, lambda step: connection.send(("step", int(step)))))


def _outcome(message: bytes, announce: Announce) -> memoryview:
    try:
        function, task = pickle.loads(message)
        return ForkingPickler.dumps(("result", function(task, announce)))
    except MemoryError:
        outcome = "memory", None
    except UserError as error:
        outcome = "error", UserError(str(error))
    except OSError as error:
        if error.errno == errno.ENOMEM:
            outcome = "memory", None
        elif error.errno is None:
            outcome = "error", OSError(str(error))
        else:
            outcome = "error", OSError(error.errno, error.strerror, error.filename)
    except Exception:
        outcome = "error", RuntimeError(f"a worker failed:\n{traceback.format_exc()}")
    return ForkingPickler.dumps(outcome)


def _end_with_parent() -> None:
    """Has the kernel end this worker with its parent.

    `follow_parent` cannot, while a decoder that hangs holds the interpreter's lock. The sentinel is
    a pipe that ends with the parent, which then raises SIGIO, whose default action ends a process.
    """
    sentinel = parent_of_worker().sentinel
    fcntl.fcntl(sentinel, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(sentinel, fcntl.F_GETFL)
    fcntl.fcntl(sentinel, fcntl.F_SETFL, flags | os.O_ASYNC)


def _be_silent() -> None:
    """Keeps what decoders print, and pydicom's warnings, out of the user's log."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)


def _limit_memory(extra_bytes: int) -> None:
    """Lets this process allocate so much more, and dump no core. On Linux, else only the latter."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return
    held = re.search(r"^VmData:\s+(\d+) kB$", status, re.MULTILINE)
    if not held:
        return
    limit = int(held[1]) * 1024 + extra_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
