"""Checkpoints: the one module that knows Orbax.

A checkpoint holds items, trees of arrays by name, and `record`: validation scores and a checksum
of every array. Orbax writes into a temporary folder and renames it, so an interrupted save leaves
nothing under a step's name. What a disk or a copy damages later, Orbax may restore without a word
(a flipped bit, measured): so what is restored is compared with its checksums, and a damaged
checkpoint gives way to the one before.

The newest checkpoints and the best by validation F-1 are kept. One that an evaluator is reading
stays until the save after; one that is gone before it was read gives way to the newer one.
"""

import contextlib
import glob
import itertools
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils.epath import gpath
from jax.experimental import multihost_utils

from dscint_jax.pytree import named_leaves
from dscint_jax.run.lock import pinned, take_away
from tfds_builder.commandline.errors import UserError, is_full, is_passing, reason
from tfds_builder.commandline.files import WriteError, write_error, write_text

SELECTION_METRIC = "f1"

DAMAGED = "damaged"
"""Folder of a work directory that damaged checkpoints are moved to when training goes on."""

UNFINISHED = "*.orbax-checkpoint-tmp*"
"""Folders that Orbax writes checkpoints in before it renames them."""

RECORD_FILE = Path("record", "metadata")
"""Where in a checkpoint Orbax writes the record."""

REPLACED = ".replaced"
"""Ending of a checkpoint's name while it is deleted."""

ATTEMPTS, PAUSE_S = 20, 0.05
"""How often, and after how long, a reader chooses anew when the checkpoint it chose is gone."""


class _DamagedError(Exception):
    """A checkpoint cannot be read, or does not hold what was saved."""


class _GoneError(Exception):
    """A checkpoint was replaced by a newer or better one while it was about to be read."""


class _LiteralPath(gpath.PosixGPath):
    """A path whose own characters are no pattern: Orbax globs for files below its paths."""

    def glob(self, pattern: str) -> Iterator["_LiteralPath"]:
        """What lies below this path and fits."""
        return (self / name for name in glob.glob(pattern, root_dir=os.fspath(self)))


class Checkpointer:
    """Saves, lists and restores the checkpoints of one work directory.

    Args:
      workdir: checkpoints lie under its `checkpoints/STEP`.
      keep_last, keep_best: how many of the newest, and of the best by validation F-1, are kept.
      read_only: for a process that only restores.

    Raises:
      UserError: there are none to read.
    """

    def __init__(
        self, workdir: Path, *, keep_last: int = 1, keep_best: int = 1, read_only: bool = False
    ):
        self._workdir = workdir
        self._directory = workdir.absolute() / "checkpoints"
        if read_only and not self._directory.is_dir():
            raise UserError(
                f"{workdir} holds no checkpoints; train first: python -m dscint_jax.main "
                f"--config ... --workdir {workdir}"
            )
        self._keep_last, self._keep_best = keep_last, keep_best
        self._replaced: set[int] = set()
        self._pending = False
        for name in ("asyncio", "absl"):
            logging.getLogger(name).addFilter(_is_news)
        self._reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
        # Which are kept is decided here: Orbax would read every checkpoint's scores as it starts,
        # and fail on one that is damaged.
        self._manager: Any = None
        if not read_only:
            if jax.process_index() == 0:
                # Left of a deletion by a process that was killed.
                for folder in self._directory.glob(f"*{REPLACED}"):
                    shutil.rmtree(folder, ignore_errors=True)
            self._manager = ocp.CheckpointManager(
                _LiteralPath(self._directory),
                options=ocp.CheckpointManagerOptions(create=True, cleanup_tmp_directories=True),
            )

    def save(
        self, step: int, items: Mapping[str, Any], scores: Mapping[str, float] | None = None
    ) -> None:
        """Starts saving in the background.

        Of a step that is saved already, as one whose evaluation was interrupted, only the
        scores are added.

        Args:
          step: taken so far.
          items: trees of arrays by name.
          scores: of the validation.

        Raises:
          WriteError: this or the checkpoint before could not be written; no part of it is left.
            So in `raise_if_failed` and `close`.
        """
        # The one before is complete when the next begins, and only then may others go.
        self._wait()
        self._delete_others()
        if step in self.steps():
            self._add_scores(step, scores)
            return
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardSave(item) for name, item in items.items()},
                    record=ocp.args.JsonSave(_new_record(scores, _summary(items))),
                ),
                force=True,
            )
        # A full disk surfaces as whatever the library in between makes of it.
        except Exception as error:
            raise self._given_up(error) from error
        self._pending = True

    def raise_if_failed(self) -> None:
        """Notices at once, not only at the next save, that saving has failed; waits for nothing."""
        if self._pending and not self._manager.is_saving_in_progress():
            self._wait()

    def has_scores(self, step: int) -> bool:
        """Whether a checkpoint was evaluated; not so if its evaluation was interrupted."""
        try:
            return self._record(step)["scores"] is not None
        except _DamagedError:
            return False

    def close(self) -> None:
        """Waits until all is saved, deletes what is not kept and frees the manager's threads."""
        if self._manager is not None:
            self._wait()
            self._delete_others()
            self._manager.close()
        self._reader.close()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending; a reader looks anew each time."""
        if self._manager is None:
            return complete_steps(self._directory)
        return sorted({*self._manager.all_steps()} - self._replaced)

    def last_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return max(self.steps(), default=None)

    def check(self, which: str) -> int:
        """The step of the checkpoint of that name; see `restore_first`.

        Raises:
          UserError: there is none.
        """
        return self._candidates(which)[0]

    def is_whole(self, step: int) -> bool:
        """Whether every array of a checkpoint is as it was saved."""
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        folder = _LiteralPath(self._directory / str(step))
        try:
            items = {_item(name) for name in self._record(step)["arrays"]}
            with ocp.StandardCheckpointer() as reader:
                trees = {item: reader.metadata(folder / item).item_metadata.tree for item in items}
            like = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), trees
            )
            self._restore(step, like)
        # Damaged metadata may fail in any way.
        except Exception:
            return False
        return True

    def restore_newest(self, like: Mapping[str, Any]) -> dict[str, Any] | None:
        """Restores the items of the newest checkpoint that is whole; None if there is none.

        Damaged ones are moved to the folder `damaged` of the work directory, with a warning.

        Args:
          like: shapes, types and shardings, as arrays or `jax.ShapeDtypeStruct`.

        Raises:
          UserError: a checkpoint is of another network or optimizer.
        """
        for step in reversed(self.steps()):
            try:
                return self._restore(step, like)
            except _DamagedError as error:
                self._warn(step, error, f"moved to {self._set_aside(step)}")
        return None

    def restore_first(self, which: str, like: Mapping[str, Any]) -> tuple[int, Any]:
        """Restores one item of a checkpoint.

        Of 'best' and 'latest', a damaged checkpoint gives way to the next best or the one before,
        with a warning.

        Args:
          which: 'best', 'latest' or a step.
          like: items by name, shapes, types and shardings; the first that the checkpoint has is
            restored.

        Returns:
          The checkpoint's step, and the item.

        Raises:
          UserError: there is no such checkpoint, all are damaged, or it is of another network.
        """
        for _ in range(ATTEMPTS):
            candidates = self._candidates(which)
            for step in candidates:
                try:
                    return step, self._restore_in_place(step, like)
                except _DamagedError as error:
                    self._warn(step, error, "left as it is")
                except _GoneError:
                    self._say(
                        f"note: checkpoint {step} was replaced meanwhile; taking the newer one"
                    )
                    time.sleep(PAUSE_S)
                    break
            else:
                raise UserError(
                    f"{self._directory}: checkpoint {', '.join(map(str, candidates))} is damaged; "
                    "choose another by --checkpoint, or train again"
                )
        raise UserError(
            f"{self._directory}: the training replaces checkpoints faster than they can be read; "
            "raise its config.keep_last, or wait for its end"
        )

    def _restore_in_place(self, step: int, like: Mapping[str, Any]) -> Any:
        """The first item that a checkpoint has, which stays where it is until all is read.

        Raises:
          _DamagedError: it is damaged.
          _GoneError: it is there no more.
        """
        folder = self._directory / str(step)
        try:
            with pinned(folder):
                held = {_item(name) for name in self._record(step)["arrays"]}
                # Where none is held, what is missing is told of the last.
                name = next((name for name in like if name in held), [*like][-1])
                return self._restore(step, {name: like[name]})[name]
        except FileNotFoundError as error:
            raise _GoneError from error
        except _DamagedError as error:
            # Half of one is never there: it is moved before it is deleted.
            if not folder.exists():
                raise _GoneError from error
            raise

    def _candidates(self, which: str) -> list[int]:
        # A new one may have come and the old one gone while the folder was listed.
        steps = self.steps() or self.steps()
        if not steps:
            raise UserError(f"{self._directory} holds no complete checkpoint; train first")
        newest_first = steps[::-1]
        if which == "latest":
            return newest_first
        if which == "best":
            best = self._best_first()
            return best + [step for step in newest_first if step not in best]
        if which.isdecimal() and int(which) in steps:
            return [int(which)]
        raise UserError(
            f"--checkpoint {which}: {self._directory} holds 'best', 'latest' and "
            f"{', '.join(map(str, steps))}"
        )

    def _best_first(self) -> list[int]:
        """Steps by falling validation F-1; of equals the later first."""
        scores = {}
        for step in self.steps():
            try:
                if found := self._record(step)["scores"]:
                    scores[step] = found[SELECTION_METRIC]
            except _DamagedError as error:
                # One that a training beside has just deleted is not damaged.
                if (self._directory / str(step)).exists():
                    self._warn(step, error, "not counted among the best")
        return sorted(scores, key=lambda step: (scores[step], step), reverse=True)

    def _wait(self) -> None:
        self._pending = False
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._given_up(error) from error

    def _given_up(self, error: Exception) -> WriteError:
        """Frees the room of a checkpoint that could not be written; says why it could not."""
        failure = write_error(self._directory, error)
        # Threads that write other arrays of it may not have noticed yet.
        for pause in (0.0, 0.1, 0.5):
            time.sleep(pause)
            for folder in self._directory.glob(UNFINISHED):
                shutil.rmtree(folder, ignore_errors=True)
        return failure

    def _add_scores(self, step: int, scores: Mapping[str, float] | None) -> None:
        try:
            record = self._record(step)
        except _DamagedError as error:
            raise UserError(
                f"checkpoint {self._directory / str(step)} was damaged while this process ran "
                f"({error}); start again"
            ) from error
        if scores is None or record["scores"] is not None:
            return
        text = json.dumps(_new_record(scores, record["arrays"]))
        if jax.process_index() == 0:
            write_text(self._directory / str(step) / RECORD_FILE, text)
        _together("scores")

    def _delete_others(self) -> None:
        """Deletes what is kept no more; what is being read, at the next call."""
        kept = {*self.steps()[-self._keep_last :], *self._best_first()[: self._keep_best]}
        self._replaced |= {*self.steps()} - kept
        if jax.process_index() != 0:
            return
        for step in self._replaced.intersection(complete_steps(self._directory)):
            folder = self._directory / str(step)
            place = folder.with_name(f"{step}{REPLACED}")
            try:
                take_away(folder, place)
            except OSError as error:
                raise write_error(folder, error) from error
            shutil.rmtree(place, ignore_errors=True)

    def _record(self, step: int) -> dict[str, Any]:
        """The scores and the summaries of a checkpoint, see `_new_record`."""
        try:
            record = json.loads((self._directory / str(step) / RECORD_FILE).read_bytes())
        except (OSError, ValueError) as error:
            raise self._unreadable(step, error) from error
        if not isinstance(record, dict) or record.pop("checksum", None) != _checksum(record):
            raise _DamagedError("its record is not as it was written")
        return record

    def _restore(self, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
        """Items in the shapes and shardings of `like`, each array compared with its checksum."""
        recorded = self._record(step)["arrays"]
        wanted = _summary(like)
        self._check_fit(step, {n: a for n, a in recorded.items() if _item(n) in like}, wanted)
        asked = {name: ocp.args.StandardRestore(item) for name, item in like.items()}
        folder = _LiteralPath(self._directory / str(step))
        try:
            read = self._reader.restore(folder, args=ocp.args.Composite(**asked))
        # What is damaged may fail anywhere within Orbax, and does so in many ways.
        except Exception as error:
            raise self._unreadable(step, error) from error
        items = {name: read[name] for name in like}
        for name, summary in _summary(items).items():
            if summary != recorded[name]:
                raise _DamagedError(f"the values of {name} are not those that were saved")
        return items

    def _check_fit(self, step: int, recorded: dict[str, str], wanted: dict[str, str]) -> None:
        """Raises UserError unless arrays have the same names, shapes and types."""
        for name in sorted({*recorded, *wanted}):
            there, here = (
                " ".join(summary.get(name, "nothing").split()[:2]) for summary in (recorded, wanted)
            )
            if there != here:
                raise UserError(
                    f"checkpoint {self._directory / str(step)} does not fit this config's network "
                    f"or optimizer: {name} is {there} there and {here} here"
                )

    def _unreadable(self, step: int, error: Exception) -> UserError | _DamagedError:
        if is_passing(error):
            return UserError(
                f"checkpoint {self._directory / str(step)} cannot be read: {reason(error)}; "
                "it may be whole: mend that, and the same command goes on from it"
            )
        return _DamagedError(reason(error))

    def _warn(self, step: int, error: Exception, what: str) -> None:
        self._say(f"warning: checkpoint {self._directory / str(step)} is damaged ({error}); {what}")

    def _say(self, line: str) -> None:
        if jax.process_index() == 0:
            print(line, flush=True)

    def _set_aside(self, step: int) -> Path:
        # All processes read the same files, and have found the same damage when they come here.
        _together("damage")
        folder = self._workdir / DAMAGED
        names = itertools.chain([f"{step}"], (f"{step}.{n}" for n in itertools.count(1)))
        place = next(folder / name for name in names if not (folder / name).exists())
        if jax.process_index() == 0:
            folder.mkdir(exist_ok=True)
            (self._directory / str(step)).rename(place)
        _together("damage set aside")
        self._manager.reload()
        return place


def complete_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, whole or damaged, ascending; none is opened.

    Orbax renames a checkpoint to its number when it is complete.
    """
    try:
        return sorted(int(name) for name in os.listdir(folder) if name.isdecimal())
    except FileNotFoundError:
        return []


def completed_step(workdir: Path) -> int | None:
    """Step of the newest checkpoint of a run, whole or damaged."""
    return max(complete_steps(workdir / "checkpoints"), default=None)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of asyncio's or absl's log tells what is not raised here as well.

    Of the reads of a damaged checkpoint Orbax awaits only the first that fails; asyncio would log
    each of the others with its traceback, at any time later. And the threads of Orbax log what
    fails in them before they hand it on.
    """
    if record.name == "asyncio":
        text = record.getMessage()
        return not ("exception was never retrieved" in text and "tensorstore" in text)
    return not (record.exc_info and "orbax" in Path(record.pathname).parts)


@contextlib.contextmanager
def resumable(workdir: Path) -> Iterator[None]:
    """Adds to a `WriteError` from which step the same command goes on.

    Raises:
      WriteError: the same, with the newest complete checkpoint.
    """
    try:
        yield
    except WriteError as error:
        step = completed_step(workdir)
        remedy = "make room" if is_full(error) else "mend that"
        kept = (
            f"no checkpoint was complete yet: {remedy}, and the same command starts anew"
            if step is None
            else f"the checkpoint of step {step} is intact: {remedy}, and the same command goes "
            "on from it"
        )
        raise WriteError(f"{error}; {kept}") from error


def _summary(items: Mapping[str, Any]) -> dict[str, str]:
    """'shape type checksum' of every array, by item and path; of mere shapes without checksum."""
    return {name: _summary_of(leaf) for name, leaf in named_leaves(items).items()}


def _summary_of(leaf: jax.Array | jax.ShapeDtypeStruct) -> str:
    kind = f"{'x'.join(map(str, leaf.shape)) or 'scalar'} {leaf.dtype}"
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return kind
    values = np.ascontiguousarray(leaf)
    return f"{kind} {zlib.crc32(values.view(np.uint8).data):08x}"


def _item(name: str) -> str:
    return name.partition("/")[0]


def _together(name: str) -> None:
    """Lets no process of several go on before all have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _new_record(scores: Mapping[str, float] | None, arrays: Mapping[str, str]) -> dict[str, Any]:
    """What is kept of a checkpoint besides its arrays, with a checksum.

    Args:
      scores: of the validation; None if there was none at this step.
      arrays: 'shape type checksum' of every array, by item and path.
    """
    held = {"scores": scores and dict(scores), "arrays": dict(arrays)}
    return held | {"checksum": _checksum(held)}


def _checksum(record: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())
