"""The data set `scintigraphy` as TFDS knows it: its version, its features, its files.

In: a data set whose records are written. Out: a folder of ArrayRecord shards under TFDS's names,
with TFDS's metadata, readable without this package. Configuration `views` has one record an image,
`studies` one record a study, anterior view first.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from tfds_builder.classes import Classes
from tfds_builder.commandline.files import write_text
from tfds_builder.shards.ingest import Ingested
from tfds_builder.shards.records import STUDIES_CONFIG, VERSION, VIEWS_CONFIG, features
from tfds_builder.shards.shard import Shard

NAME = "scintigraphy"
RELEASE_NOTES = {
    "1.1.0": "Configuration studies; records keep site, view rule and notes.",
    "1.0.0": "First release.",
}
CONFIG_DESCRIPTIONS = {
    VIEWS_CONFIG: "One record an image (a view).",
    STUDIES_CONFIG: "One record a study: anterior and posterior view.",
}

_FORMAT = tfds.core.FileFormat.ARRAY_RECORD
_BUILDER_MODULE = f"{__package__}.{NAME}_dataset_builder"


def data_set_info(
    builder: tfds.core.DatasetBuilder | tfds.core.DatasetIdentity,
    of_records: tfds.features.FeaturesDict,
    metadata: tfds.core.MetadataDict | None = None,
    of_splits: tfds.core.SplitDict | None = None,
) -> tfds.core.DatasetInfo:
    """What TFDS has to know of the data set.

    `builder` is the builder, or who it would be; `metadata`, what metadata.json holds, and
    `of_splits` are there where the records are written.
    """
    package = Path(__file__).parent
    info = tfds.core.DatasetInfo(
        builder=builder,
        description=(package / "README.md").read_text(encoding="utf-8"),
        citation=(package / "CITATIONS.bib").read_text(encoding="utf-8"),
        features=of_records,
        supervised_keys=("image", "label"),
        disable_shuffling=True,
        metadata=tfds.core.MetadataDict() if metadata is None else metadata,
        homepage="https://www.dicomstandard.org",
        split_dict=of_splits,
    )
    info.set_file_format(_FORMAT)
    return info


def write_data_set(ingested: Ingested, folder: Path) -> None:
    """Gives the shards their TFDS names, and writes the metadata beside them.

    TFDS's own way, a generator of records, holds each split's records in memory to shuffle them,
    needs TensorFlow where they exceed 1 GB, and knows of no rejected files. The folder is
    DATA_DIR/scintigraphy/CONFIG/VERSION, and exists.
    """
    config = folder.parent.name
    identity = tfds.core.DatasetIdentity(
        name=NAME,
        version=tfds.core.Version(VERSION),
        data_dir=str(folder),
        module_name=_BUILDER_MODULE,
        config_name=config,
        config_description=CONFIG_DESCRIPTIONS[config],
        release_notes=RELEASE_NOTES,
    )
    info = data_set_info(
        identity,
        features(config, ingested.plan.classes.names),
        tfds.core.MetadataDict(metadata_of(ingested)),
        tfds.core.SplitDict(
            [_place_split(split, ingested, folder) for split, own in ingested.shards.items() if own]
        ),
    )
    info.write_to_directory(folder)
    # The configuration of those who name none.
    default = json.dumps({"default_config_name": VIEWS_CONFIG})
    write_text(folder.parent.parent / ".config" / "metadata.json", default)


def _place_split(split: str, ingested: Ingested, folder: Path) -> tfds.core.SplitInfo:
    shards = ingested.shards[split]
    template = tfds.core.ShardedFileTemplate(
        data_dir=tfds.core.Path(folder),
        dataset_name=NAME,
        split=split,
        filetype_suffix=_FORMAT.file_suffix,
    )
    for n, shard in enumerate(shards):
        name = template.sharded_filepath(shard_index=n, num_shards=len(shards))
        Path(shard.path).rename(name)
    return tfds.core.SplitInfo(
        name=split,
        shard_lengths=[len(shard.records) for shard in shards],
        num_bytes=sum(shard.size for shard in shards),
        filename_template=template,
    )


def metadata_of(ingested: Ingested) -> dict[str, Any]:
    """What metadata.json holds of a data set that is written.

    Returns:
      class_counts: split -> class -> records.
      fingerprint: see `Plan.fingerprint`.
      split_proof: what each split holds, and that they share nothing.
      view_rules, manufacturers, pixel_spacings_mm, sexes, age_bands: value -> images.
      notes: what was assumed, changed or found -> how often.
      rejected_rows: rows of the manifest that cannot be used.
      images_left_out: images in no record.
    """
    images, classes = ingested.images, ingested.plan.classes
    return {
        "class_counts": {
            split: _class_counts(own, classes) for split, own in ingested.shards.items()
        },
        "fingerprint": ingested.fingerprint,
        "split_proof": ingested.proof,
        "view_rules": _tally(facts.view_rule for facts in images),
        "notes": _tally(ingested.notes()),
        "manufacturers": _tally(facts.manufacturer for facts in images),
        "pixel_spacings_mm": _tally(f"{facts.pixel_spacing_mm:.2f}" for facts in images),
        "sexes": _tally(facts.sex for facts in images),
        "age_bands": _tally(facts.age_band for facts in images),
        "rejected_rows": len(ingested.rejected),
        "images_left_out": len(ingested.left_out),
    }


def _class_counts(shards: Iterable[Shard], classes: Classes) -> dict[str, int]:
    records = [record for shard in shards for record in shard.records]
    counts = Counter(classes.most_serious([facts.label for facts in own]) for own in records)
    return {label: counts[label] for label in classes.names}


def _tally(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))
