"""The TFDS dataset `scintigraphy`: whole-body bone scintigrams as counts, one record an image.

In: a plan made from a manifest (or manual_dir/manifest.csv, under `tfds build`). Out: ArrayRecord
shards with TFDS metadata, readable without this package.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from tfds_builder import deidentify, splits
from tfds_builder.manifest import read_manifest
from tfds_builder.plan import Plan, Source, plan_data_set
from tfds_builder.records import Written, examples, features, write_shard


@dataclass(frozen=True)
class ShardTask:
    """One ArrayRecord file to be written: its sources and its path."""

    split: str
    sources: tuple[Source, ...]
    path: str

    def write(self) -> Written:
        """Writes it; see `records.write_shard`."""
        return write_shard(self.sources, self.path)


WriteAll = Callable[[list[ShardTask]], Iterable[Written]]


@dataclass
class _Summary:
    lengths: list[int] = field(default_factory=list)
    size: int = 0


class Builder(tfds.core.GeneratorBasedBuilder):
    """Whole-body bone scintigraphy in four classes, split by patient."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="views", description="One record an image (a view).")
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put manifest.csv, the files that it names, and pseudonym.key into manual_dir."
    )

    def __init__(
        self,
        *,
        plan: Plan | None = None,
        write_all: WriteAll | None = None,
        **kwargs: Any,
    ):
        """Makes a builder.

        Args:
          plan: what to build; without it, it is made from manual_dir/manifest.csv.
          write_all: writes shard tasks and yields what was written, in order; by default one after
            the other in this process.
          **kwargs: as for any TFDS builder (data_dir, config, version).
        """
        super().__init__(**kwargs)
        self._plan = plan
        self._write_all = write_all or (lambda tasks: (task.write() for task in tasks))

    def _info(self) -> tfds.core.DatasetInfo:
        info = self.dataset_info_from_configs(
            features=features(),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
            homepage="https://www.dicomstandard.org",
        )
        info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
        return info

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        plan = self._plan or self._plan_from(Path(dl_manager.manual_dir))
        return {
            split: self._generate_examples(shards)
            for split, shards in plan.shards.items()
            if shards
        }

    def _generate_examples(
        self, shards: tuple[tuple[Source, ...], ...]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for source in itertools.chain.from_iterable(shards):
            for example, _ in examples(source):
                yield example["image_id"], example

    def _generate_splits(
        self, dl_manager: tfds.download.DownloadManager, download_config: Any
    ) -> list[tfds.core.SplitInfo]:
        """Writes shard after shard straight from the files, in the order of the image ids.

        TFDS's own way, which goes through `_split_generators`, holds each split's records in memory
        to shuffle them, and needs TensorFlow where they exceed 1 GB.
        """
        del download_config
        plan = self._plan or self._plan_from(Path(dl_manager.manual_dir))
        tasks = list(self._tasks(plan))
        summaries = {task.split: _Summary() for task in tasks}
        notes, rules = plan.notes.copy(), Counter()
        for task, written in zip(tasks, self._write_all(tasks), strict=True):
            summaries[task.split].lengths.append(written.images)
            summaries[task.split].size += written.size
            notes += written.notes
            rules += written.view_rules
        self.info.metadata.update(_metadata(plan, notes, rules))
        return [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=summary.lengths,
                num_bytes=summary.size,
                filename_template=self._get_filename_template(split),
            )
            for split, summary in summaries.items()
        ]

    def _tasks(self, plan: Plan) -> Iterator[ShardTask]:
        for split, shards in plan.shards.items():
            template = self._get_filename_template(split)
            for n, sources in enumerate(shards):
                path = template.sharded_filepath(shard_index=n, num_shards=len(shards))
                yield ShardTask(split, sources, str(path))

    def _plan_from(self, folder: Path) -> Plan:
        key, _ = deidentify.read_or_create_key(folder / deidentify.KEY_FILE_NAME)
        known = splits.read_splits(Path(self._data_dir_root) / splits.FILE_NAME)
        manifest = folder / "manifest.csv"
        return plan_data_set(manifest, read_manifest(manifest), key, known, str(self.version))


def _metadata(plan: Plan, notes: Counter[str], rules: Counter[str]) -> dict[str, Any]:
    return {
        "class_counts": {
            split: found["images_by_class"] for split, found in plan.proof["splits"].items()
        },
        "fingerprint": plan.fingerprint,
        "split_proof": plan.proof,
        "view_rules": dict(sorted(rules.items())),
        "notes": dict(sorted(notes.items())),
    }
