"""The TFDS dataset `scintigraphy`: whole-body bone scintigrams as counts.

In: a plan made from a manifest (or manual_dir/manifest.csv, under `tfds build`). Out: ArrayRecord
shards with TFDS metadata, readable without this package. Configuration `views` has one record an
image, `studies` one record a study, anterior view first.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import tensorflow_datasets as tfds

from tfds_builder import splits
from tfds_builder.commandline.command import available_cores
from tfds_builder.commandline.files import write_text
from tfds_builder.manifest import read_manifest
from tfds_builder.shards.findings import refuse_unacceptable, write_findings
from tfds_builder.shards.ingest import Ingested, ingest
from tfds_builder.shards.plan import Options, Plan, plan_data_set
from tfds_builder.shards.records import STUDIES_CONFIG, VIEWS_CONFIG, features
from tfds_builder.shards.shard import ShardTask, shard_pool
from tfds_builder.studies import deidentify

VERSION = "1.1.0"

Ingest = Callable[[Plan, Path], Ingested]

_SHARD_FOLDER = "shards"


class Builder(tfds.core.GeneratorBasedBuilder):
    """Whole-body bone scintigraphy, in the classes of its manifest, split by patient."""

    VERSION = tfds.core.Version(VERSION)
    RELEASE_NOTES = {  # noqa: RUF012
        "1.1.0": "Configuration studies; records keep site, view rule and notes.",
        "1.0.0": "First release.",
    }
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=VIEWS_CONFIG, description="One record an image (a view)."),
        tfds.core.BuilderConfig(
            name=STUDIES_CONFIG, description="One record a study: anterior and posterior view."
        ),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put manifest.csv, the files that it names, and pseudonym.key into a folder outside "
        "data_dir, and give it as manual_dir."
    )

    def __init__(self, *, plan: Plan | None = None, ingest: Ingest | None = None, **kwargs: Any):
        """Makes a builder.

        Args:
          plan: what to build; without it, it is made from manual_dir/manifest.csv.
          ingest: writes the plan's shards into a folder; by default in this process.
          **kwargs: as for any TFDS builder (data_dir, config, version).
        """
        super().__init__(**kwargs)
        self._plan = plan
        self._ingest = ingest or self._ingest_here

    @property
    def _config_name(self) -> str:
        if self.builder_config is None:
            raise RuntimeError("a builder that has configurations was made without one")
        return self.builder_config.name

    def _info(self) -> tfds.core.DatasetInfo:
        info = self.dataset_info_from_configs(
            features=features(self._config_name),
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
        raise NotImplementedError("the records are written by _generate_splits")

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        raise NotImplementedError("the records are written by _generate_splits")

    def _generate_splits(
        self, dl_manager: tfds.download.DownloadManager, download_config: Any
    ) -> list[tfds.core.SplitInfo]:
        """Writes shard after shard straight from the files, in the order of the image ids.

        TFDS's own way, which goes through `_split_generators`, holds each split's records in memory
        to shuffle them, needs TensorFlow where they exceed 1 GB, and knows of no rejected files.
        """
        del download_config
        plan = self._plan or self._plan_from(Path(dl_manager.manual_dir))
        place = Path(self.data_path)
        folder = place / _SHARD_FOLDER
        folder.mkdir(parents=True)
        ingested = self._ingest(plan, folder)
        self._enter_classes(plan.classes.names)
        infos = [self._split_info(split, ingested) for split in ingested.shards]
        shutil.rmtree(folder)
        write_findings(ingested, place)
        if not isinstance(self.info.metadata, tfds.core.MetadataDict):
            raise TypeError("the metadata are not those of _info")
        self.info.metadata.update(metadata_of(ingested))
        return [info for info in infos if info.shard_lengths]

    def _enter_classes(self, names: tuple[str, ...]) -> None:
        """Gives the label its names, which only the data tell."""
        known = self.info.features
        label = known["label"] if isinstance(known, tfds.features.FeaturesDict) else None
        if not isinstance(label, tfds.features.ClassLabel):
            raise TypeError("the features are not those of _info")
        label.names = list(names)

    def _split_info(self, split: str, ingested: Ingested) -> tfds.core.SplitInfo:
        """Gives a split's shards their TFDS names."""
        template = self._get_filename_template(split)
        shards = ingested.shards[split]
        for n, shard in enumerate(shards):
            final = template.sharded_filepath(shard_index=n, num_shards=len(shards))
            Path(shard.path).rename(final)
        return tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard.records for shard in shards],
            num_bytes=sum(shard.size for shard in shards),
            filename_template=template,
        )

    def _plan_from(self, folder: Path) -> Plan:
        key_file = folder / deidentify.KEY_FILE_NAME
        deidentify.refuse_key_in(Path(self._data_dir_root), key_file)
        key, _ = deidentify.read_or_create_key(key_file)
        known = splits.read_splits(Path(self._data_dir_root) / splits.FILE_NAME)
        manifest = folder / "manifest.csv"
        options = Options(config=self._config_name)
        return plan_data_set(manifest, read_manifest(manifest), key, known, options)

    def _ingest_here(self, plan: Plan, folder: Path) -> Ingested:
        root = Path(self._data_dir_root)
        with shard_pool(available_cores()) as pool:
            ingested = ingest(
                plan,
                folder,
                VERSION,
                lambda function, tasks: pool.map(function, tasks, ShardTask.after),
            )
        refuse_unacceptable(ingested, root)
        write_text(root / splits.FILE_NAME, splits.splits_text(ingested.patients))
        return ingested


class Metadata(TypedDict):
    """What metadata.json holds.

    Attributes:
      class_counts: split -> class -> records.
      fingerprint: see `Plan.fingerprint`.
      split_proof: what each split holds, and that they share nothing.
      view_rules, manufacturers, pixel_spacings_mm, sexes, age_bands: value -> images.
      notes: what was assumed, changed or found -> how often.
      rejected_rows: rows of the manifest that cannot be used.
      images_left_out: images in no record.
    """

    class_counts: dict[str, dict[str, int]]
    fingerprint: str
    split_proof: splits.Proof
    view_rules: dict[str, int]
    notes: dict[str, int]
    manufacturers: dict[str, int]
    pixel_spacings_mm: dict[str, int]
    sexes: dict[str, int]
    age_bands: dict[str, int]
    rejected_rows: int
    images_left_out: int


def metadata_of(ingested: Ingested) -> Metadata:
    """The metadata of a data set that is written."""
    images = ingested.images
    return {
        "class_counts": {
            split: _records_by_class(ingested, split) for split in ingested.plan.options.fractions
        },
        "fingerprint": ingested.fingerprint,
        "split_proof": ingested.proof,
        "view_rules": _sorted(Counter(facts.view_rule for facts in images)),
        "notes": _sorted(ingested.notes()),
        "manufacturers": _sorted(Counter(facts.manufacturer for facts in images)),
        "pixel_spacings_mm": _sorted(Counter(f"{facts.pixel_spacing_mm:.2f}" for facts in images)),
        "sexes": _sorted(Counter(facts.sex for facts in images)),
        "age_bands": _sorted(Counter(facts.age_band for facts in images)),
        "rejected_rows": len(ingested.rejected),
        "images_left_out": len(ingested.left_out),
    }


def _records_by_class(ingested: Ingested, split: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for shard in ingested.shards[split]:
        counts += shard.labels
    return {label: counts[label] for label in ingested.plan.classes.names}


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))
