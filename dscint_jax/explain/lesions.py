"""The lesions of an image: where its record's mask has them, and what each is like.

In: a split's records, which have lesion numbers in `lesion_mask`. Out: masks of lesions by what
they are like: size, contrast, and whether they lie at a fixed site.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, UInt8
from scipy import ndimage

from dscint_jax.baselines.body import Body, find_body
from dscint_jax.config import Config
from dscint_jax.input_pipeline import Scintigrams, open_dataset, parts_of, sum_pool

MASK, SPACING = "lesion_mask", "pixel_spacing_mm"

RING_MM = 20.0
"""How far around a lesion its surroundings reach."""

ALL = ("all", "all lesions")
SIZES = ((0.0, "up to 20 mm"), (20.0, "20 to 25 mm"), (25.0, "over 25 mm"))
"""What the diameter of a lesion of each size is above."""
CONTRASTS = ((-np.inf, "up to 2"), (2.0, "2 to 3"), (3.0, "over 3"))
"""What the contrast of each group is above; of phantoms about a third each, as of sizes."""
NECK, ELSEWHERE = "neck (fixed)", "other (nonfixed)"
"""Sites: thyroid carcinoma is at the one, metastases and arthritis are anywhere."""

NECK_ROWS = (0.13, 0.18)
"""From the chin to the shoulders: fractions of the body's height below its crown.

Drillis and Contini (1966) have the chin at 0.870 of the height and the shoulder at 0.818.
"""
NECK_HALF_WIDTH = 0.04
"""To each side of the midline: fraction of the body's height."""

GROUPS = (
    ALL,
    *(("site", name) for name in (NECK, ELSEWHERE)),
    *(("size", name) for _, name in SIZES),
    *(("contrast", name) for _, name in CONTRASTS),
)
"""By what lesions are grouped, and the groups."""


@dataclasses.dataclass(frozen=True)
class LesionRecord:
    """What the record of an image, or of a study, says of its pixels.

    Attributes:
      counts: as recorded, before any pooling.
      mask: lesion numbers from 1; 0 where there is none.
      pixel_mm: side of a pixel in each view; NaN where the record does not say.
    """

    counts: Integer[np.ndarray, "view height width"]
    mask: UInt8[np.ndarray, "view height width"]
    pixel_mm: Float[np.ndarray, " view"]

    @property
    def measurable(self) -> bool:
        """Whether the size of a pixel is known in each view that has a lesion."""
        return bool((self.pixel_mm[self.mask.any((1, 2))] > 0).all())

    def covered(self, side: int) -> Bool[np.ndarray, "view small_height small_width"]:
        """Which blocks of pixels have a lesion."""
        return sum_pool(np.asarray(self.mask > 0, np.int32)[..., None], side)[..., 0] > 0

    def pooled(self, side: int) -> Int[np.ndarray, "view small_height small_width"]:
        """Counts summed over blocks of pixels, as the network is given them."""
        return sum_pool(self.counts[..., None], side)[..., 0]


@dataclasses.dataclass(frozen=True)
class Lesion:
    """A lesion in one view.

    Attributes:
      view: index of the view.
      number: its number in the mask.
      diameter_mm: of the circle that has its area.
      contrast: mean counts of its pixels over those of the pixels within RING_MM that no lesion
        has; NaN where there are no such pixels or no counts in them.
      site: NECK or ELSEWHERE, by the middle of its pixels.
    """

    view: int
    number: int
    diameter_mm: float
    contrast: float
    site: str

    @property
    def groups(self) -> tuple[tuple[str, str], ...]:
        """Those of GROUPS that it is in."""
        own = (ALL, ("site", self.site), ("size", _name_of(self.diameter_mm, SIZES)))
        if np.isnan(self.contrast):
            return own
        return (*own, ("contrast", _name_of(self.contrast, CONTRASTS)))


def lesion_records(
    config: Config, images: Scintigrams
) -> Callable[[Int[np.ndarray, " image"]], Sequence[LesionRecord | None]]:
    """Reads a split's records by their indices; of copies, which are moved, masks would be beside.

    Args:
      config: of the run; `config.data` says which data set.
      images: the split.

    Returns:
      A function of indices; what it returns is None for copies.
    """
    import tensorflow_datasets as tfds

    if images.copies:
        return lambda indices: [None] * len(indices)
    builder = open_dataset(Path(config.data.dir), config.data.records)
    parts = parts_of(images.split, builder.info.splits, config.data.fold)
    skip = tfds.decode.SkipDecoding()
    others = {n: skip for n in builder.info.features if n not in ("image", MASK, SPACING)}
    records = builder.as_data_source(split="+".join(parts), decoders=others)

    def read(indices: Int[np.ndarray, " image"]) -> list[LesionRecord]:
        # Of a share of the patients, the images have other numbers in the split.
        return [_annotated(r) for r in records.__getitems__(images.sources(indices).tolist())]

    return read


def _annotated(record: dict[str, Any]) -> LesionRecord:
    counts, mask = (
        record[name].reshape(-1, *record[name].shape[-3:-1]) for name in ("image", MASK)
    )
    spacing = np.atleast_1d(np.asarray(record.get(SPACING, np.nan), np.float64))
    return LesionRecord(counts, mask, np.broadcast_to(spacing, len(counts)))


def lesions_of(record: LesionRecord, side: int) -> list[Lesion]:
    """Every lesion in every view of a record whose pixel sizes are known.

    Args:
      record: of an image.
      side: of the blocks of pixels that the body is looked for in.
    """
    found = []
    for view, mask in enumerate(record.mask):
        if not mask.any():
            continue
        body, pixel_mm = find_body(record.pooled(side)[view]), float(record.pixel_mm[view])
        for number, box in enumerate(ndimage.find_objects(mask), 1):
            if box is None:
                continue
            places = np.nonzero(mask[box] == number)
            row, column = (
                np.mean(along + part.start) + 0.5 for along, part in zip(places, box, strict=True)
            )
            neck = _in_neck(body, float(row) / side, float(column) / side)
            found.append(
                Lesion(
                    view=view,
                    number=number,
                    diameter_mm=float(np.sqrt(len(places[0]) * 4 / np.pi) * pixel_mm),
                    contrast=contrast(record.counts[view], mask, number, pixel_mm, box),
                    site=NECK if neck else ELSEWHERE,
                )
            )
    return found


def _in_neck(body: Body, row: float, column: float) -> bool:
    """Whether a point, in pixels from the image's upper left corner, lies in the neck."""
    below, aside = (row - body.crown) / body.height, (column - body.midline) / body.height
    return NECK_ROWS[0] <= below <= NECK_ROWS[1] and abs(aside) <= NECK_HALF_WIDTH


def contrast(
    counts: Integer[np.ndarray, "height width"],
    mask: UInt8[np.ndarray, "height width"],
    number: int,
    pixel_mm: float,
    box: tuple[slice, ...],
) -> float:
    """Mean counts of a lesion, whose rows and columns `box` has, over those around it: `Lesion`."""
    reach = int(np.ceil(RING_MM / pixel_mm))
    window = tuple(slice(max(part.start - reach, 0), part.stop + reach) for part in box)
    near, own = counts[window], mask[window] == number
    distance = np.asarray(ndimage.distance_transform_edt(~own)) * pixel_mm
    ring = (distance <= RING_MM) & (mask[window] == 0)
    around = near[ring].mean() if ring.any() else 0.0
    return float(near[own].mean() / around) if around > 0 else np.nan


def group_masks(
    record: LesionRecord, lesions: list[Lesion]
) -> Iterator[tuple[list[int], Bool[np.ndarray, "view height width"]]]:
    """The pixels of the lesions of each group that a record has: indices in GROUPS, and mask.

    Groups of the same lesions come together: an image with one lesion has one mask.
    """
    indices: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for index, group in enumerate(GROUPS):
        chosen = tuple((own.view, own.number) for own in lesions if group in own.groups)
        if chosen:
            indices.setdefault(chosen, []).append(index)
    for chosen, groups in indices.items():
        mask = np.zeros(record.mask.shape, bool)
        for view in {view for view, _ in chosen}:
            numbers = [number for place, number in chosen if place == view]
            mask[view] = np.isin(record.mask[view], numbers)
        yield groups, mask


def _name_of(value: float, groups: tuple[tuple[float, str], ...]) -> str:
    return [name for least, name in groups if value > least][-1]
