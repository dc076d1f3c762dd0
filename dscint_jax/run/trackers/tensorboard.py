"""Scalars for TensorBoard, written by the thread that measures them.

In: values by step. Out: an event file, and an error where it cannot be written: the library's own
writer has a thread that dies of a full disk, after which training waits for it forever.
"""

import time
from contextlib import suppress
from pathlib import Path

from dscint_jax.run.trackers.tracker import Values, import_tracker
from tfds_builder.commandline.files import write_error

FLUSH_EVERY_S = 10.0


class TensorBoard:
    """A new event file under `workdir/tensorboard`, written without TensorFlow.

    Args:
      workdir: the run's directory.
      start_step: values of later steps, in earlier files of the folder, are hidden.

    Raises:
      WriteError: the file cannot be written, here, in `write` and in `close`.
    """

    def __init__(self, workdir: Path, *, start_step: int):
        import_tracker("tensorboard")
        # Imported late: it is slow, and only training writes event files.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        self._folder = workdir / "tensorboard"
        self._flushed, self._event = time.monotonic(), Event
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = EventsWriter(str(self._folder / "events"))
        except OSError as error:
            raise write_error(self._folder, error) from error
        self._write(
            Event(
                wall_time=time.time(),
                step=start_step + 1,
                session_log=SessionLog(status=SessionLog.START),
            )
        )

    def write(self, step: int, values: Values) -> None:
        """Writes one step's values."""
        from tensorboardX.summary import scalar

        for name, value in values.items():
            summary = scalar(name, value)
            self._write(self._event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        """Puts all on the disk."""
        try:
            self._file.close()
        except OSError as error:
            raise self._given_up(error) from error

    def _write(self, event: object) -> None:
        try:
            self._file.write_event(event)
            if time.monotonic() - self._flushed > FLUSH_EVERY_S:
                self._flushed = time.monotonic()
                self._file.flush()
        except OSError as error:
            raise self._given_up(error) from error

    def _given_up(self, error: OSError) -> Exception:
        # What could not be written would be tried again as the file is forgotten, with a traceback.
        with suppress(OSError):
            self._file.close()
        return write_error(self._folder, error)
