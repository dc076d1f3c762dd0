"""python -m tfds_builder.inspect: what is in a data set, and what its images look like.

In: a data directory. Out: a summary on the screen, from the metadata alone; with --montage a
picture of images of every class.
"""

import argparse
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tfds_builder.atomic import write_whole
from tfds_builder.command import CommandParser
from tfds_builder.errors import DataError, run_command
from tfds_builder.manifest import LABELS, VIEWS
from tfds_builder.progress import make_console, say
from tfds_builder.records import CONFIGS, STUDIES_CONFIG, VIEWS_CONFIG

_KINDS = ("images", "studies", "patients")
_POOL = 4
_BRIGHTEST = 3.0  # Of an image's scale; brighter is drawn as this.
_MONTAGE_DPI = 150


def main(argv: list[str] | None = None) -> None:
    """Says what the data set that the command line names holds.

    Raises:
      DataError: anything that the user can mend.
    """
    options = _parser().parse_args(argv)
    if options.per_class < 1:
        raise DataError(f"--per_class {options.per_class}: at least 1 is needed")
    builder = _open(options.data_dir, options.config)
    console = make_console()
    _print_summary(console, builder)
    if options.montage:
        write_whole(
            options.montage,
            lambda part: _draw_montage(builder, part, options.split, options.per_class),
        )
        say(console, f"{options.montage}: {options.per_class} of each class, {options.split}")


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
    add("--split", default="train", help="the split that the montage shows (default: train)")
    add("--per_class", type=int, default=6, metavar="N", help="images a class (default: 6)")
    return parser


def _open(data_dir: Path, config: str) -> Any:
    versions = sorted(
        (data_dir / "scintigraphy" / config).glob("*/dataset_info.json"),
        key=lambda path: [int(part) for part in re.findall(r"\d+", path.parent.name)],
    )
    if not versions:
        raise DataError(
            f"{data_dir} holds no data set scintigraphy/{config}; build one: "
            f"python -m tfds_builder.build --config {config} --data_dir {data_dir} --manifest ..."
        )
    try:
        return tfds.builder_from_directory(versions[-1].parent)
    except Exception as error:  # TFDS raises nearly anything on damaged metadata.
        raise DataError(
            f"{versions[-1].parent}: cannot be read ({type(error).__name__}); build it again"
        ) from error


def _print_summary(console: Console, builder: Any) -> None:
    metadata = builder.info.metadata
    say(console, f"scintigraphy/{builder.builder_config.name} {builder.version}")
    say(console, f"fingerprint {metadata.get('fingerprint', 'unknown')}")
    headings = (*(label.replace("_", " ") for label in LABELS), "records", *_KINDS, "MiB")
    table = Table("split", *headings, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for split, proof in metadata["split_proof"]["splits"].items():
        counts = metadata["class_counts"][split]
        size = _size_on_disk(builder, split) / 2**20
        table.add_row(
            split,
            *(str(counts[label]) for label in LABELS),
            str(sum(counts.values())),
            *(str(proof[kind]) for kind in _KINDS),
            f"{size:.0f}",
        )
    console.print(table)
    shared = sum(
        n for pair in metadata["split_proof"]["intersections"].values() for n in pair.values()
    )
    say(console, f"patients, studies and images in two splits: {shared}")
    for title, field in (
        ("maker", "manufacturers"),
        ("pixel spacing, mm", "pixel_spacings_mm"),
        ("view by", "view_rules"),
        ("sex", "sexes"),
        ("age", "age_bands"),
    ):
        found = metadata.get(field, {})
        text = ", ".join(f"{name} ({times}x)" for name, times in found.items())
        say(console, f"{title}: {text or 'not recorded'}")
    _print_warnings(console, metadata)


def _print_warnings(console: Console, metadata: dict[str, Any]) -> None:
    for note, times in metadata["notes"].items():
        say(console, f"note: {note} ({times}x)")
    if metadata.get("rejected_rows"):
        say(console, f"note: rows of the manifest left out: {metadata['rejected_rows']}")
    if metadata.get("images_left_out"):
        say(console, f"note: images in no record: {metadata['images_left_out']}")


def _size_on_disk(builder: Any, split: str) -> int:
    if split not in builder.info.splits:
        return 0
    return sum(Path(path).stat().st_size for path in builder.info.splits[split].filepaths)


def _draw_montage(builder: Any, path: Path, split: str, per_class: int) -> None:
    # Slow to import, and needed for the picture only.
    from matplotlib.figure import Figure

    pictures = _pictures(builder, split, per_class)
    views = len(VIEWS) if builder.builder_config.name == STUDIES_CONFIG else 1
    figure = Figure(
        figsize=(0.75 * views * per_class + 0.3, 2.9 * len(LABELS)), layout="constrained"
    )
    axes = figure.subplots(len(LABELS), per_class, squeeze=False)
    for row, label in zip(axes, LABELS, strict=True):
        row[0].set_title(label.replace("_", " "), loc="left", fontsize=9)
        for axis in row:
            axis.set_axis_off()
        for axis, picture in zip(row, pictures[label], strict=False):
            axis.imshow(picture, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    figure.savefig(path, format="png", dpi=_MONTAGE_DPI)


def _pictures(builder: Any, split: str, per_class: int) -> dict[str, list[np.ndarray]]:
    """For each class, square roots of counts from records spread over the whole split."""
    if split not in builder.info.splits:
        raise DataError(f"no split '{split}'; there are {', '.join(builder.info.splits)}")
    source = builder.as_data_source(split, decoders={"lesion_mask": tfds.decode.SkipDecoding()})
    wanted = {
        label: per_class for label, n in builder.info.metadata["class_counts"][split].items() if n
    }
    pictures: dict[str, list[np.ndarray]] = defaultdict(list)
    for n in _spread(len(source)):
        if all(len(pictures[label]) >= count for label, count in wanted.items()):
            break
        record = source[n]
        label = LABELS[record["label"]]
        if len(pictures[label]) < per_class:
            pictures[label].append(_picture(record))
    return pictures


def _spread(count: int) -> np.ndarray:
    """All indices, each far from those before it: the golden section's steps."""
    return np.argsort(np.arange(count) * 0.6180339887498949 % 1, kind="stable")


def _picture(record: dict[str, Any]) -> np.ndarray:
    views = record["image"] if record["image"].ndim == 4 else record["image"][None]
    scales = np.atleast_1d(record["scale"])
    drawn = []
    for counts, scale in zip(views, scales, strict=True):
        rows, columns = (n // _POOL for n in counts.shape[:2])
        pooled = counts.reshape(rows, _POOL, columns, _POOL).mean((1, 3))
        drawn.append(np.sqrt(np.clip(pooled / (_BRIGHTEST * scale), 0, 1)))
    return np.concatenate(drawn, axis=1)


if __name__ == "__main__":
    run_command(main)
