"""Draws docs/gallery.png: NEMA's NM1, a real scan, before phantoms of the four classes.

    python docs/make_gallery.py

Needs the `dev` extra, whose package pydicom-data carries NM1 (JPEG-LL.dcm). All scans are drawn at
one size, each view's square root of counts from white to its own 99.6th percentile.
"""

import dataclasses
import functools
import importlib.util
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image, ImageDraw, ImageFont

from tests.phantom_checks.measure import find_body
from tfds_builder.commandline.errors import UserError, run_command
from tfds_builder.commandline.files import write_whole
from tfds_builder.phantom import Scan, sample_case, simulate

SEED = 0
WANTED = {"normal": 8, "metastasis": 2, "arthritis": 2, "thyroid_carcinoma": 2}
STUDIES_A_ROW = 5
PICTURE_MM = 3.2
"""Size of a pixel of the picture."""
GREYS = 16
"""So few that the file is small; noise hides the steps."""
MARGIN, GAP, HEADING, CAPTION = 4, 16, 32, 24  # Pixels.
INK = 29


@dataclasses.dataclass(frozen=True)
class View:
    """Counts (rows, columns) of one view, and what is written above it."""

    caption: str
    counts: np.ndarray
    pixel_mm: float

    @functools.cached_property
    def body(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Middle and size of the body in rows and columns: ((row, column), (tall, wide))."""
        inside = find_body(self.counts)
        spans = [np.flatnonzero(inside.any(axis=axis))[[0, -1]] for axis in (1, 0)]
        return tuple(float(s.mean()) for s in spans), tuple(float(np.ptp(s)) + 1 for s in spans)


def nm1() -> View:
    """NM1, thinned to the counts of a clinical scan so that noise can be compared."""
    package = importlib.util.find_spec("data_store")
    if package is None:
        raise UserError("pydicom-data is missing; pip install '.[dev]'")
    path = Path(package.submodule_search_locations[0]) / "data" / "JPEG-LL.dcm"
    dataset = pydicom.dcmread(path)
    counts = dataset.pixel_array.squeeze()
    # 3.6 million counts, where the phantoms and clinical scans have about 0.5 million a view.
    thinned = np.random.default_rng(SEED).binomial(counts.clip(0), 0.15)
    return View("anterior", thinned, float(dataset.PixelSpacing[0]))


def chosen() -> Iterator[Scan]:
    """The first patients of the seed of each class, of the diseased those who show all lesions."""
    drawn: Counter[str] = Counter()
    for number in range(1000):
        label = sample_case(SEED, number).label
        if drawn[label] == WANTED[label]:
            continue
        scan = simulate(SEED, number)
        if all(any(lesion.visible) for lesion in scan.lesions):
            drawn[label] += 1
            yield scan
        if drawn == Counter(WANTED):
            return


def studies() -> list[tuple[str, list[View]]]:
    """Heading and views of all that is drawn, class by class."""
    drawn = [("NM1, a real scan", [nm1()])]
    order = list(WANTED)
    for scan in sorted(chosen(), key=lambda scan: order.index(scan.label)):
        pair = zip(("anterior", "posterior"), scan.counts, strict=True)
        views = [View(caption, counts, scan.protocol.pixel_mm) for caption, counts in pair]
        drawn.append((scan.label.replace("_", " "), views))
    return drawn


def picture() -> Image.Image:
    """The montage: the views of a study side by side, the bodies in their middle."""
    drawn = studies()
    sizes = [np.array(view.body[1]) * view.pixel_mm for _, views in drawn for view in views]
    tall, wide = (int(size / PICTURE_MM) + 2 * MARGIN for size in np.max(sizes, axis=0))
    cell = (2 * wide + GAP, HEADING + CAPTION + tall + GAP)
    rows = -(-len(drawn) // STUDIES_A_ROW)
    canvas = Image.new("L", (STUDIES_A_ROW * cell[0], rows * cell[1]), 255)
    pen = ImageDraw.Draw(canvas)
    for place, (heading, views) in enumerate(drawn):
        x, y = place % STUDIES_A_ROW * cell[0] + GAP // 2, place // STUDIES_A_ROW * cell[1]
        pen.text((x + wide, y + 2), heading, INK, ImageFont.load_default(25), anchor="ma")
        for number, view in enumerate(views):
            left = x + number * wide + (2 - len(views)) * wide // 2
            middle = (left + wide // 2, y + HEADING)
            pen.text(middle, view.caption, INK, ImageFont.load_default(18), anchor="ma")
            canvas.paste(_grey(view, tall, wide), (left, y + HEADING + CAPTION))
    levels = np.rint(np.asarray(canvas) / 255 * (GREYS - 1)) / (GREYS - 1)
    return Image.fromarray(np.rint(levels * 255).astype(np.uint8))


def _grey(view: View, tall: int, wide: int) -> Image.Image:
    """The view about its body in `tall` x `wide` pixels of the picture; dark is many counts."""
    root = np.sqrt(view.counts)
    level = np.clip(root / np.percentile(root, 99.6), 0, 1)
    row, column = view.body[0]
    half = np.array([tall, wide]) / 2 * PICTURE_MM / view.pixel_mm
    edge = int(half.max()) + 1
    image = Image.fromarray(np.pad(255 * (1 - level), edge, constant_values=255).astype(np.float32))
    top, left = row + 0.5 + edge - half[0], column + 0.5 + edge - half[1]
    box = (left, top, left + 2 * half[1], top + 2 * half[0])
    return image.resize((wide, tall), Image.Resampling.BILINEAR, box).convert("L")


def main() -> None:
    """Draws and saves the picture."""
    path = Path(__file__).with_name("gallery.png")
    drawn = picture()
    write_whole(path, lambda part: drawn.save(part, format="PNG", optimize=True))
    print(f"{path}: {drawn.width}x{drawn.height} pixels, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    run_command(main)
