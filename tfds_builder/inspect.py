"""python -m tfds_builder.inspect: what is in a data set, and what its images look like.

In: a data directory. Out: a summary on the screen, from the metadata alone; with --montage a
picture of images of every class.
"""

import argparse
import contextlib
import csv
import io
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import tensorflow_datasets as tfds
from rich.box import SIMPLE_HEAD
from rich.table import Table

from tfds_builder.commandline.command import CommandParser
from tfds_builder.commandline.errors import UserError, run_command
from tfds_builder.commandline.files import write_whole
from tfds_builder.commandline.progress import say, show
from tfds_builder.manifest import VIEWS
from tfds_builder.shards.findings import QUALITY
from tfds_builder.shards.records import CONFIGS, VIEW_NAMES, VIEWS_CONFIG

_KINDS = ("images", "studies", "patients")
_POOL = 4
_BRIGHTEST = 3.0  # Of an image's scale; brighter is drawn as this.
_ALL = "all"
_MOST_PER_CLASS, _MOST_COLUMNS = 1000, 24
_GAP, _HEADING, _CAPTION = 4, 22, 14  # Pixels; each picture has two lines of caption.


@dataclass(frozen=True)
class _Picture:
    """A record as it is drawn: its name, its views from left to right, and grey values."""

    image_id: str
    views: tuple[str, ...]
    pixels: np.ndarray


def main(argv: list[str] | None = None) -> None:
    """Says what the data set that the command line names holds; raises UserError."""
    options = _parser().parse_args(argv)
    if not 1 <= options.per_class <= _MOST_PER_CLASS:
        raise UserError(f"--per_class {options.per_class}: 1 to {_MOST_PER_CLASS} can be drawn")
    builder = _open(options.data_dir, options.config)
    _print_summary(builder)
    if options.montage:
        pictures = _pictures(builder, options.split, options.per_class)
        montage = _montage(pictures, _manifest_rows(builder))
        write_whole(options.montage, lambda part: montage.save(part, format="PNG"))
        drawn = sum(map(len, pictures.values()))
        say(f"{options.montage}: {drawn} images of {options.split}")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m tfds_builder.inspect",
        description="Says what a data set holds: records, patients, views, pixel spacings, makers "
        "of cameras, what was assumed or found wrong. Reads the metadata only.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--data_dir", type=Path, required=True, help="where the data set was built")
    add("--config", choices=CONFIGS, default=VIEWS_CONFIG, help="default: views")
    add("--montage", type=Path, metavar="OUT.png", help="draw images of every class")
    add(
        "--split",
        default="train",
        help=f"the split that the montage shows, or {_ALL} (default: train)",
    )
    add(
        "--per_class",
        type=int,
        default=6,
        metavar="N",
        help=f"at most so many images a class, up to {_MOST_PER_CLASS} (default: 6)",
    )
    return parser


def _open(data_dir: Path, config: str) -> Any:
    versions = sorted(
        (data_dir / "scintigraphy" / config).glob("*/dataset_info.json"),
        key=lambda path: [int(part) for part in re.findall(r"\d+", path.parent.name)],
    )
    if not versions:
        raise UserError(
            f"{data_dir} holds no data set scintigraphy/{config}; build one: "
            f"python -m tfds_builder.build --config {config} --data_dir {data_dir} --manifest ..."
        )
    try:
        builder: Any = tfds.builder_from_directory(versions[-1].parent)
        # Read only now, and not when it is opened.
        builder.info.metadata["split_proof"]
        return builder
    except Exception as error:  # TFDS raises nearly anything on damaged metadata.
        raise UserError(
            f"{versions[-1].parent}: cannot be read ({type(error).__name__}); build it again"
        ) from error


def _print_summary(builder: Any) -> None:
    metadata = builder.info.metadata
    say(f"scintigraphy/{builder.builder_config.name} {builder.version}")
    say(f"fingerprint {metadata.get('fingerprint', 'unknown')}")
    names = builder.info.features["label"].names
    headings = (*(label.replace("_", " ") for label in names), "records", *_KINDS, "MiB")
    table = Table("split", *headings, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for split, proof in metadata["split_proof"]["splits"].items():
        counts = metadata["class_counts"][split]
        files = builder.info.splits[split].filepaths if split in builder.info.splits else ()
        size = sum(Path(file).stat().st_size for file in files) / 2**20
        table.add_row(
            split,
            *(str(counts[label]) for label in names),
            str(sum(counts.values())),
            *(str(proof[kind]) for kind in _KINDS),
            f"{size:.0f}",
        )
    show(table)
    shared = sum(
        n for pair in metadata["split_proof"]["intersections"].values() for n in pair.values()
    )
    say(f"patients, studies and images in two splits: {shared}")
    for title, field in (
        ("maker", "manufacturers"),
        ("pixel spacing, mm", "pixel_spacings_mm"),
        ("view by", "view_rules"),
        ("sex", "sexes"),
        ("age", "age_bands"),
    ):
        found = metadata.get(field, {})
        text = ", ".join(f"{name} ({times}x)" for name, times in found.items())
        say(f"{title}: {text or 'not recorded'}")
    for note, times in metadata["notes"].items():
        say(f"note: {note} ({times}x)")
    if metadata.get("rejected_rows"):
        say(f"note: rows of the manifest left out: {metadata['rejected_rows']}")
    if metadata.get("images_left_out"):
        say(f"note: images in no record: {metadata['images_left_out']}")


def _montage(pictures: dict[str, list[_Picture]], rows: dict[str, str]) -> PIL.Image.Image:
    """Draws images of every class, each over its manifest row and view."""
    height, width = next(own[0].pixels for own in pictures.values()).shape
    columns = min(_MOST_COLUMNS, max(map(len, pictures.values())))
    lines = {label: -(-len(own) // columns) for label, own in pictures.items()}
    size = (
        columns * (width + _GAP) + _GAP,
        sum(_HEADING + count * (height + 2 * _CAPTION) for count in lines.values()),
    )
    montage = PIL.Image.new("L", size, 255)
    draw = PIL.ImageDraw.Draw(montage)
    top = 0
    for label, own in pictures.items():
        draw.text((_GAP, top + _GAP), label.replace("_", " "), fill=0, font_size=_HEADING - 6)
        top += _HEADING
        for n, picture in enumerate(own):
            line, column = divmod(n, columns)
            left, upper = _GAP + column * (width + _GAP), top + line * (height + 2 * _CAPTION)
            montage.paste(PIL.Image.fromarray(picture.pixels), (left, upper))
            row = f"row {rows.get(picture.image_id, '?')}"
            draw.text((left, upper + height), row, fill=0, font_size=_CAPTION - 2)
            for m, view in enumerate(picture.views):
                place = left + m * width // len(picture.views), upper + height + _CAPTION
                draw.text(place, view, fill=0, font_size=_CAPTION - 2)
        top += lines[label] * (height + 2 * _CAPTION)
    return montage


def _manifest_rows(builder: Any) -> dict[str, str]:
    """Image id, of a view or of a study -> manifest row."""
    rows: dict[str, str] = {}
    with contextlib.suppress(OSError, UnicodeDecodeError, csv.Error):
        text = (Path(builder.data_dir) / QUALITY).read_text(encoding="utf-8")
        for line in csv.DictReader(io.StringIO(text)):
            image, row = line.get("image_id") or "", line.get("row") or ""
            rows[image] = row
            rows.setdefault(image.rpartition("-")[0], row)
    return rows


def _pictures(builder: Any, split: str, per_class: int) -> dict[str, list[_Picture]]:
    """For each class, pictures of records spread over the whole split, or splits."""
    names = list(builder.info.splits) if split == _ALL else [split]
    if split != _ALL and split not in builder.info.splits:
        raise UserError(f"no split '{split}'; there are {', '.join([*builder.info.splits, _ALL])}")
    source = builder.as_data_source(
        "+".join(names), decoders={"lesion_mask": tfds.decode.SkipDecoding()}
    )
    counts = Counter()
    for name in names:
        counts.update(builder.info.metadata["class_counts"][name])
    wanted = {label: min(per_class, n) for label, n in counts.items() if n}
    pictures: dict[str, list[_Picture]] = {label: [] for label in wanted}
    # Each far from those before it: the golden section's steps.
    for n in np.argsort(np.arange(len(source)) * 0.6180339887498949 % 1, kind="stable"):
        if all(len(pictures[label]) == count for label, count in wanted.items()):
            break
        record = source[n]
        label = builder.info.features["label"].int2str(record["label"])
        if len(pictures[label]) < wanted[label]:
            pictures[label].append(_picture(record))
    return pictures


def views_of(record: dict[str, Any]) -> tuple[str, ...]:
    """What the pictures of a record are, from left to right."""
    if "view" in record:
        return (VIEW_NAMES[record["view"]],)
    there = zip(VIEWS, record["has_view"], strict=True)
    return tuple(view if has else f"no {view}" for view, has in there)


def _picture(record: dict[str, Any]) -> _Picture:
    views = record["image"] if record["image"].ndim == 4 else record["image"][None]
    scales = np.atleast_1d(record["scale"])
    drawn = []
    for counts, scale in zip(views, scales, strict=True):
        rows, columns = (n // _POOL for n in counts.shape[:2])
        pooled = counts.reshape(rows, _POOL, columns, _POOL).mean((1, 3))
        drawn.append(np.sqrt(np.clip(pooled / (_BRIGHTEST * scale), 0, 1)))
    # Dark is many, as scans are printed.
    pixels = (255 * (1 - np.concatenate(drawn, axis=1))).astype(np.uint8)
    return _Picture(record["image_id"].decode(), views_of(record), pixels)


if __name__ == "__main__":
    run_command(main)
