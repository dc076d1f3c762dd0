"""Writes shards on an Apache Beam runner instead of this machine's processes (extra `beam`).

In: shard tasks. Out: the same shards. Tasks and results go through files beside the shards, so the
pipeline itself stays small on any runner; every worker must see the manifest's folder and the data
directory under the same paths.
"""

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tfds_builder.errors import DataError
from tfds_builder.shard import Shard, ShardTask, write_shard
from tfds_builder.workers import WorkerPool

_QUIET = ("--default_sdk_harness_log_level=WARNING",)


def run_on_beam(
    tasks: Sequence[ShardTask], runner: str, options: Sequence[str], pool_options: dict[str, Any]
) -> Iterator[Shard]:
    """Runs tasks as one Beam pipeline and yields their results in order.

    Args:
      tasks: what to write.
      runner: 'DirectRunner', 'FlinkRunner', 'DataflowRunner' or any other that Beam knows.
      options: further pipeline options, as on a command line.
      pool_options: of the `WorkerPool` of one process that each Beam worker decodes in.

    Raises:
      DataError: Beam is not installed; the pipeline failed; a task could not be written.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise DataError(
            "--beam_runner needs Apache Beam: pip install -c constraints.txt '.[beam]'"
        ) from None

    class WriteShards(beam.DoFn):
        """Decodes in a process of its own: a file that crashes it must not fail the bundle."""

        def setup(self) -> None:
            self._pool = WorkerPool(1, **pool_options)

        def process(self, path: str) -> Iterator[str]:
            task = pickle.loads(_task_file(path).read_bytes())
            result: Shard | DataError
            try:
                (result,) = self._pool.map(write_shard, [task], ShardTask.without)
            except DataError as error:
                result = error
            _result_file(path).write_bytes(pickle.dumps(result))
            yield path

        def teardown(self) -> None:
            self._pool.__exit__(None, None, None)

    for task in tasks:
        _task_file(task.path).write_bytes(pickle.dumps(task))
    try:
        pipeline_options = PipelineOptions([f"--runner={runner}", *_QUIET, *options])
        with beam.Pipeline(options=pipeline_options) as pipeline:
            paths = pipeline | beam.Create([task.path for task in tasks]) | beam.Reshuffle()
            _ = paths | "write shards" >> beam.ParDo(WriteShards())
    except Exception as error:
        raise DataError(
            f"the Beam pipeline failed on {runner} ({type(error).__name__}): {_first_line(error)}"
        ) from error
    for task in tasks:
        yield _taken_result(task.path)


def _task_file(path: str) -> Path:
    return Path(f"{path}.task")


def _result_file(path: str) -> Path:
    return Path(f"{path}.result")


def _taken_result(path: str) -> Shard:
    try:
        result = pickle.loads(_result_file(path).read_bytes())
    except FileNotFoundError:
        raise DataError(
            "a Beam worker left no result: do all workers see the data directory as this machine "
            "does?"
        ) from None
    _task_file(path).unlink()
    _result_file(path).unlink()
    if isinstance(result, DataError):
        raise result
    return result


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
