"""Whether an image is like those that a network was trained for.

In: a run with its data set, once; then images. Out: remarks on those whose counts, pixels or
outlines are far from the validation images'. What a network says of such an image means little.

An outline is the image on a grid of 16x8, every cell over its spread among the validation images;
its distance is that to the fifth nearest of these. The network's own last features were tried first
and tell nothing: means of its maps over positions put a flood and a pelvis among the skeletons.
"""

import contextlib
import dataclasses
import io
import zlib
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float

from dscint_jax.config import Config
from dscint_jax.evaluate.restored import config_at_hand
from dscint_jax.input_pipeline import Scintigrams, open_dataset
from dscint_jax.input_pipeline.records import CHUNK
from dscint_jax.training.experiment import load_images
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import WriteError, write_bytes
from tfds_builder.commandline.progress import ProgressBar

FILE = "familiarity.npz"
NEIGHBOUR = 5
MOST_IMAGES = 2000
"""Validation images that are kept, spread over the split."""

FEWEST_IMAGES = 50
"""Validation images below which outlines are not compared: among so few, all are strangers."""

MARGIN = 1.1
"""How much further than any validation image an image may be."""

COUNTS_MARGIN = 1.5
"""How many times the counts of the validation image with most, or the fewest over its own."""

SPACING_MARGIN = 1.05
"""How many times the largest pixel of the data set, or the smallest over its own."""

GRID = 16, 8
"""Rows and columns of an outline, or as many as the image has."""

STRANGE = "its outline is unlike those of all validation images"


@dataclasses.dataclass(frozen=True)
class Familiarity:
    """What a network was trained for.

    Attributes:
      outlines: of validation images, cell by cell, over `spread`.
      spread: standard deviation of each cell among them.
      limit: the largest distance that is familiar.
      counts: the fewest and the most of an image.
      spacing_mm: the smallest and the largest pixel; NaN where no record tells.
    """

    outlines: Float[np.ndarray, "image cell"]
    spread: Float[np.ndarray, " cell"]
    limit: float
    counts: tuple[float, float]
    spacing_mm: tuple[float, float]

    def remarks(
        self, images: Scintigrams, spacing_mm: Float[np.ndarray, " image"]
    ) -> list[list[str]]:
        """What is unlike training in each of some images; NaN is a spacing that is not known."""
        outlines, counts = outlines_of(images)
        distances = _nearest(_distances(outlines / self.spread, self.outlines))
        found = []
        for distance, total, spacing in zip(distances, counts, spacing_mm, strict=True):
            own = []
            if _outside(total, self.counts, COUNTS_MARGIN):
                low, high = self.counts
                own.append(f"{total:,.0f} counts; training has {low:,.0f} to {high:,.0f} an image")
            if _outside(spacing, self.spacing_mm, SPACING_MARGIN):
                low, high = self.spacing_mm
                own.append(f"pixels of {spacing:.2f} mm; training has {low:.2f} to {high:.2f} mm")
            if distance > self.limit:
                own.append(STRANGE)
            found.append(own)
        return found


def familiarity_of(workdir: Path) -> Familiarity | None:
    """What a run's network was trained for: read from the run, or measured and kept there.

    Returns:
      None where it was not measured yet and the data set is not where the config says.
    """
    path = workdir / FILE
    if path.exists():
        return _read(path)
    config = config_at_hand(workdir)
    if config is None:
        return None
    with ProgressBar("looking at the validation images", noun="images") as bar:
        found = measure(load_images(config, "validation", bar.reached), _spacings(config))
    content = io.BytesIO()
    np.savez_compressed(content, **dataclasses.asdict(found))
    # A colleague's run may only be read: then it is measured again the next time.
    with contextlib.suppress(WriteError):
        write_bytes(path, content.getvalue())
    return found


def measure(images: Scintigrams, spacing_mm: tuple[float, float]) -> Familiarity:
    """Measures what the images of a split are like."""
    outlines, counts = outlines_of(images)
    kept = np.arange(min(len(images), MOST_IMAGES)) * len(images) // min(len(images), MOST_IMAGES)
    spread = outlines.std(0)
    # A cell that is always empty: what is there counts as in the others.
    spread = np.where(spread > 0, spread, spread.mean() or 1.0)
    known, patients = outlines[kept] / spread, images.keys()["patient_key"][kept]
    distances = _distances(known, known)
    distances[patients[:, None] == patients] = np.inf
    return Familiarity(
        outlines=known,
        spread=spread,
        limit=float(_nearest(distances).max() * MARGIN) if len(kept) >= FEWEST_IMAGES else np.inf,
        counts=(float(counts.min()), float(counts.max())),
        spacing_mm=spacing_mm,
    )


def outlines_of(
    images: Scintigrams,
) -> tuple[Float[np.ndarray, "image cell"], Float[np.ndarray, " image"]]:
    """The outlines and the counts of all images."""
    outlines, counts = [], []
    for start in range(0, len(images), CHUNK):
        batch = images.read(np.arange(start, min(start + CHUNK, len(images))))
        pixels = batch["counts"][..., 0].astype(np.float32)
        counts.append(pixels.reshape(len(pixels), -1).sum(1, dtype=np.float64))
        outlines.append(_outlines(pixels / batch["scale"][..., None, None]))
    return np.concatenate(outlines), np.concatenate(counts)


def _outlines(pixels: Float[np.ndarray, "image *view height width"]) -> np.ndarray:
    """The square roots of means over the cells of the grid; those of both views of a study."""
    height, width = pixels.shape[-2:]
    rows, columns = min(GRID[0], height), min(GRID[1], width)
    cells = pixels.reshape(*pixels.shape[:-2], rows, height // rows, columns, width // columns)
    return np.sqrt(cells.mean((-3, -1))).reshape(len(pixels), -1)


def _spacings(config: Config) -> tuple[float, float]:
    """The smallest and the largest pixel of a config's data set, mm."""
    metadata = open_dataset(Path(config.data.dir), config.data.records).info.metadata
    values = map(float, metadata.get("pixel_spacings_mm", {}))
    known = [value for value in values if np.isfinite(value)]
    return (min(known), max(known)) if known else (np.nan, np.nan)


def _read(path: Path) -> Familiarity:
    try:
        with np.load(path, allow_pickle=False) as held:
            return Familiarity(
                held["outlines"],
                held["spread"],
                float(held["limit"]),
                tuple(held["counts"].tolist()),
                tuple(held["spacing_mm"].tolist()),
            )
    except (OSError, EOFError, ValueError, KeyError, BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it") from None


def _distances(
    outlines: Float[np.ndarray, "image cell"], others: Float[np.ndarray, "other cell"]
) -> Float[np.ndarray, "image other"]:
    """Root mean squares over the cells."""
    return np.stack([np.sqrt(((one - others) ** 2).mean(1)) for one in outlines])


def _nearest(distances: Float[np.ndarray, "image other"]) -> Float[np.ndarray, " image"]:
    """That of the NEIGHBOURth nearest."""
    return np.sort(distances, axis=1)[:, min(NEIGHBOUR, distances.shape[1]) - 1]


def _outside(value: float, known: tuple[float, float], margin: float) -> bool:
    low, high = known
    # NaN, of what is not known, is outside of nothing.
    return bool(value < low / margin or value > high * margin)
