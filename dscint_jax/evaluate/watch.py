"""Evaluates every checkpoint of a training as it is saved, from another process or machine.

    python -m dscint_jax.evaluate --workdir runs/dscint --split test --watch

In: a work directory that a training fills, or is about to. Out: a line of history.jsonl for each
checkpoint, in the folder of the split's results; when training is complete, the evaluation of the
best one. A checkpoint is held from the moment it is seen until it was evaluated. What was killed
and is started again goes on with the checkpoints that have no line.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dscint_jax.evaluate.evaluate import Target, evaluate_all, measure, targets_of
from dscint_jax.evaluate.restored import TrainedNetwork, load_trained, validation_images
from dscint_jax.input_pipeline import check_split
from dscint_jax.metrics.scores import METRIC_NAMES, in_words
from dscint_jax.run.checkpoint import complete_steps
from dscint_jax.run.lock import pinned
from dscint_jax.run.provenance import is_complete
from dscint_jax.run.trackers.json_lines import JsonLines, read_lines
from tfds_builder.commandline.progress import say

HISTORY_FILE = "history.jsonl"

LOOK_EVERY_S = 0.2
"""A training replaces a checkpoint when it saves the next but one, or later."""

FOREVER = 1 << 62


def watch(
    workdir: Path,
    *,
    splits: Sequence[str],
    checkpoint: str = "best",
    mirror: bool = False,
    told: Callable[[dict[str, Any]], None] = lambda result: None,
    **places: Any,
) -> list[dict[str, Any]]:
    """Evaluates the checkpoints of a training until it is complete, then the best of them.

    One that cannot be evaluated is reported and does not end the watch.

    Args:
      workdir: of the training; it may not be there yet.
      splits, mirror, told: as for `evaluate_all`.
      checkpoint: what is evaluated at the end.
      places: `data_dir`, `name`, `external` and `out` of `evaluate_all`.

    Returns:
      What each metrics.json holds in the end.

    Raises:
      UserError: as `evaluate_all` has it.
    """
    for split in splits:
        check_split(split)
    with contextlib.ExitStack() as stack:
        # From now on none is lost, however long the rest takes to begin.
        checkpoints = stack.enter_context(HeldCheckpoints(workdir))
        _wait_for_training(workdir)
        targets = targets_of(workdir, splits, **places)
        followed = [
            stack.enter_context(contextlib.closing(_History(workdir, each, mirror)))
            for each in targets
        ]
        network: TrainedNetwork | None = None
        for step in checkpoints:
            for each in followed:
                if step not in each.done:
                    network = each.add(step, network)
    return evaluate_all(
        workdir, splits=splits, checkpoint=checkpoint, mirror=mirror, told=told, **places
    )


class _History:
    """The evaluations of one split, a line of history.jsonl for each checkpoint.

    Attributes:
      done: the checkpoints that were evaluated when the watch began.
    """

    def __init__(self, workdir: Path, target: Target, mirror: bool):
        self._workdir, self._target, self._mirror = workdir, target, mirror
        path = target.folder / HISTORY_FILE
        self._augmentation = "mirror" if mirror else None
        self.done = {
            line["step"]
            for line in read_lines(path)
            if "error" not in line and line.get("test_time_augmentation") == self._augmentation
        }
        self._lines = JsonLines(path, start_step=FOREVER)
        self._network: TrainedNetwork | None = None
        self._known: dict[str, Any] = {}

    def add(self, step: int, other: TrainedNetwork | None) -> TrainedNetwork | None:
        """Evaluates a checkpoint.

        Args:
          step: of the checkpoint.
          other: a network of the same run, whose compiled steps are taken.

        Returns:
          The network, or the other one where it could not be evaluated.
        """
        started = time.monotonic()
        where = f"{self._target.folder.name}, step {step}"
        if self._target.folder.parent.name != "eval":
            where = f"{self._target.folder.parent.name} {where}"
        try:
            network = self._at(step, other)
            result, _ = measure(network, mirror=self._mirror, **self._known)
        # Whatever one checkpoint fails by, the next may be evaluated.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            self._lines.write(step, {"error": reason})
            say(f"{where} could not be evaluated: {reason}")
            return other
        scores = {name: result[name] for name in (*METRIC_NAMES, "loss")}
        told = {
            **scores,
            "intervals": result["intervals"]["values"],
            "test_time_augmentation": self._augmentation,
        }
        self._lines.write(step, told)
        took = time.monotonic() - started
        say(
            f"{where}: accuracy {in_words(scores['accuracy'])}, F-1 {in_words(scores['f1'])}, "
            f"loss {scores['loss']:.4f} ({took:.1f} s)"
        )
        return network

    def close(self) -> None:
        """Ends the file."""
        self._lines.close()

    def _at(self, step: int, other: TrainedNetwork | None) -> TrainedNetwork:
        network, workdir, checkpoint = self._network, self._workdir, str(step)
        if network is None:
            where: dict[str, Any] = {"split": self._target.split, "data_dir": self._target.data_dir}
            if other:
                network = other.on(workdir, **where)
            else:
                network = load_trained(workdir, checkpoint=checkpoint, **where)
            self._known = {
                "leakage": network.leakage(),
                "validation": validation_images(workdir, network),
            }
        self._network = network if network.step == step else network.at(workdir, checkpoint)
        return self._network


class HeldCheckpoints:
    """The checkpoints of a training, the oldest first, until it is complete.

    A thread holds each from the moment it is complete until the next is asked for, so that the
    training leaves it where it is.

    Args:
      workdir: of the training.
    """

    def __init__(self, workdir: Path):
        self._workdir, self._folder = workdir, workdir / "checkpoints"
        self._seen, self._held = set[int](), dict[int, contextlib.ExitStack]()
        self._ended, self._looking = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "HeldCheckpoints":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for held in self._held.values():
            held.close()

    def __iter__(self) -> Iterator[int]:
        while True:
            # Asked before the folder is looked at: what is complete saves nothing any more.
            complete = is_complete(self._workdir)
            if complete:
                self._look()
            # Not while some of those that are there are held and older ones not yet.
            with self._looking:
                step = min(self._held, default=None)
            if step is not None:
                yield step
                self._held.pop(step).close()
            elif complete:
                return
            else:
                time.sleep(LOOK_EVERY_S)

    def _follow(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            # A network's file system fails now and then.
            with contextlib.suppress(OSError):
                self._look()

    def _look(self) -> None:
        with self._looking:
            for step in {*complete_steps(self._folder)} - self._seen:
                with contextlib.ExitStack() as stack, contextlib.suppress(FileNotFoundError):
                    stack.enter_context(pinned(self._folder / str(step)))
                    self._held[step] = stack.pop_all()
                self._seen.add(step)


def _wait_for_training(workdir: Path) -> None:
    """Returns once there is a checkpoint, or the training is complete."""
    told = False
    while not complete_steps(workdir / "checkpoints") and not is_complete(workdir):
        if not told:
            say(f"waiting for the first checkpoint in {workdir}")
            told = True
        time.sleep(LOOK_EVERY_S)
