"""What the shortcut baselines see of each image."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dscint_jax.baselines.body import NECK_SCALE_PERCENT, find_body, neck_crop
from dscint_jax.baselines.linear_baseline import POOL
from dscint_jax.input_pipeline import (
    IDENTITY_FIELDS,
    NO_FOLD,
    HeldImages,
    HostBatch,
    Scintigrams,
    load_split,
    open_dataset,
    parts_of,
    sum_pool,
)
from dscint_jax.input_pipeline.records import chunks_of, joined

READ_POOL = 2
"""Blocks of 2 x 2 pixels: the neck's pixels are about as fine as the crop's."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the shortcuts see of one split; images in the order of the data set.

    Attributes:
      thumbnails: a host batch of images summed over blocks of POOL.
      necks: the crops, and `scale` in counts a pixel of a crop.
      facts: values by name, of text or of numbers, NaN where unknown.
    """

    thumbnails: HostBatch
    necks: Scintigrams
    facts: dict[str, np.ndarray]


def read_inputs(
    data_dir: Path,
    split: str,
    *,
    fold: int = NO_FOLD,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Inputs:
    """Reads one split once, and keeps what the shortcuts see of it.

    Arguments and errors are those of `load_split`.
    """
    images = load_split(data_dir, split, pool=READ_POOL, cache_gib=0, fold=fold)
    chunks = []
    for indices in chunks_of(np.arange(len(images))):
        chunks.append(_inputs_of(images.read(indices)))
        progress(int(indices[-1]) + 1, len(images))
    columns = joined(chunks)
    shared = {name: columns[name] for name in ("label", "mask", *IDENTITY_FIELDS)}
    thumbnails = shared | {"counts": columns["thumbnail"], "scale": columns["scale"]}
    necks = shared | {"counts": columns["neck"], "scale": columns["neck_scale"]}
    return Inputs(
        thumbnails,
        dataclasses.replace(images, images=HeldImages(necks)),
        facts_of(columns, recorded_facts(data_dir, split, fold)),
    )


def _inputs_of(batch: HostBatch) -> HostBatch:
    """What is kept of a batch that was read with READ_POOL."""
    bodies = [find_body(counts[..., 0]) for counts in batch["counts"]]
    necks = np.stack(
        [neck_crop(c[..., 0], body) for c, body in zip(batch["counts"], bodies, strict=True)]
    )
    scale = batch["scale"] / READ_POOL**2
    return {
        "thumbnail": np.stack([sum_pool(counts, POOL // READ_POOL) for counts in batch["counts"]]),
        "scale": scale * POOL**2,
        "neck": necks[..., None],
        "neck_scale": np.percentile(necks, NECK_SCALE_PERCENT, axis=(1, 2)).clip(1, None),
        "total_counts": batch["counts"].sum((1, 2, 3), dtype=np.int64),
        "body_height": np.array([body.height * READ_POOL for body in bodies]),
        "crown": np.array([body.crown * READ_POOL for body in bodies]),
        **{name: batch[name] for name in ("label", "mask", *IDENTITY_FIELDS)},
    }


TEXT_FACTS = ("sex", "age_band", "manufacturer", "site_key", "view_rule", "notes")
SPACING = "pixel_spacing_mm"
DECILES = np.arange(0.1, 1.0, 0.1)


def recorded_facts(data_dir: Path, split: str, fold: int) -> dict[str, np.ndarray]:
    """Those of TEXT_FACTS and the pixel spacing that the data set's records have."""
    import tensorflow_datasets as tfds

    builder = open_dataset(data_dir)
    decoders = {name: tfds.decode.SkipDecoding() for name in ("image", "lesion_mask")}
    parts = parts_of(split, builder.info.splits, fold)
    records = builder.as_data_source(split="+".join(parts), decoders=decoders)
    names = [name for name in (*TEXT_FACTS, SPACING) if name in builder.info.features]
    rows = [{name: record[name] for name in names} for record in records]
    return {name: np.array([row[name] for row in rows]) for name in names}


def facts_of(columns: HostBatch, recorded: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is known of each image besides its pixels, a column a fact."""
    facts = {"view": columns["view"]} | recorded | {"total_counts": columns["total_counts"]}
    spacing = recorded.get(SPACING, np.full(len(columns["crown"]), np.nan))
    return facts | {
        "body_height_mm": columns["body_height"] * spacing,
        "crown_mm": columns["crown"] * spacing,
    }
