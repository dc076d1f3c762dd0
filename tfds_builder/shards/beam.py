"""Writes shards on an Apache Beam runner instead of this machine's processes (extra `beam`).

In: shard tasks. Out: the same shards. Tasks go through files in a private folder beside the
manifest, since they name patients; results through files beside the shards. So the pipeline itself
stays small on any runner; every worker must see both folders under the same paths.
"""

import pickle
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tfds_builder.commandline.errors import UserError, reason
from tfds_builder.shards.shard import Shard, ShardTask, shard_pool, write_shard

_QUIET = ("--default_sdk_harness_log_level=WARNING",)


def run_on_beam(
    tasks: Sequence[ShardTask],
    site_folder: Path,
    runner: str,
    options: Sequence[str],
    file_seconds: float,
) -> Iterator[Shard]:
    """Runs tasks as one Beam pipeline and yields their results in order.

    Args:
      tasks: what to write.
      site_folder: the manifest's.
      runner: 'DirectRunner', 'FlinkRunner', 'DataflowRunner' or any other that Beam knows.
      options: further pipeline options, as on a command line.
      file_seconds: the longest that a file may take.

    Raises:
      UserError: Beam is not installed; the pipeline failed; a task could not be written.
    """
    try:
        # An extra, which need not be installed.
        import apache_beam as beam  # pyright: ignore[reportMissingImports]
        from apache_beam.options.pipeline_options import (  # pyright: ignore[reportMissingImports]
            PipelineOptions,
        )
    except ImportError:
        raise UserError(
            "--beam_runner needs Apache Beam: pip install -c constraints.txt '.[beam]'"
        ) from None

    class WriteShards(beam.DoFn):
        """Decodes in a process of its own: a file that crashes it must not fail the bundle."""

        def setup(self) -> None:
            self._pool = shard_pool(1, file_seconds)

        def process(self, task_file: str) -> Iterator[str]:
            task = pickle.loads(Path(task_file).read_bytes())
            result: Shard | UserError
            try:
                (result,) = self._pool.map(write_shard, [task], ShardTask.after)
            except UserError as error:
                result = error
            _result_file(task).write_bytes(pickle.dumps(result))
            yield task_file

        def teardown(self) -> None:
            self._pool.__exit__(None, None, None)

    with tempfile.TemporaryDirectory(dir=site_folder, prefix=".beam-tasks-") as folder:
        files = [Path(folder, str(n)) for n in range(len(tasks))]
        for file, task in zip(files, tasks, strict=True):
            file.write_bytes(pickle.dumps(task))
        try:
            pipeline_options = PipelineOptions([f"--runner={runner}", *_QUIET, *options])
            with beam.Pipeline(options=pipeline_options) as pipeline:
                names = pipeline | beam.Create([str(file) for file in files]) | beam.Reshuffle()
                _ = names | "write shards" >> beam.ParDo(WriteShards())
        except Exception as error:
            raise UserError(
                f"the Beam pipeline failed on {runner} ({type(error).__name__}): {reason(error)}"
            ) from error
    for task in tasks:
        yield _taken_result(task)


def _result_file(task: ShardTask) -> Path:
    return Path(f"{task.path}.result")


def _taken_result(task: ShardTask) -> Shard:
    file = _result_file(task)
    try:
        result = pickle.loads(file.read_bytes())
    except FileNotFoundError:
        raise UserError(
            "a Beam worker left no result: do all workers see the data directory as this machine "
            "does?"
        ) from None
    file.unlink()
    if isinstance(result, UserError):
        raise result
    return result
