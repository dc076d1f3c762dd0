"""How far shortcuts go on a data set: is the class told by something trivial?

    python -m dscint_jax.shortcuts --data_dir data

In: a data set. Out: a table of what three things alone tell of the class of patients that nothing
was fitted on: thumbnails under logistic regression, the neck under a small network, the facts of
the acquisition. What a shortcut reaches, no network can claim for reading the skeleton.
"""

import dataclasses
import functools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from rich.console import Console
from rich.table import Table
from scipy import ndimage
from sklearn.preprocessing import OneHotEncoder

from dscint_jax.baseline import POOL, baseline_of, fit_logistic, score_by_patient
from dscint_jax.config import Augmentation, Config, Optimizer
from dscint_jax.errors import CommandParser, DscintError, run_command
from dscint_jax.evaluate import Predictions, predict_split
from dscint_jax.experiment import make_experiment
from dscint_jax.input_pipeline import (
    IDENTITY_FIELDS,
    NO_FOLD,
    HeldImages,
    HostBatch,
    Scintigrams,
    device_fields,
    folds_of,
    load_split,
    open_dataset,
    parts_of,
    sum_pool,
    training_batches,
)
from dscint_jax.metrics import interval_in_words
from dscint_jax.progress import ProgressBar
from dscint_jax.train_step import eval_step, train_step
from dscint_jax.workdir import write_json

READ_POOL = 2
"""Blocks of 2 x 2 pixels: the neck's pixels are about as fine as the crop's."""

NECK_ROWS = (0.09, 0.19)
"""From the mouth to the collarbones: fractions of the body's height below its crown."""

NECK_HALF_WIDTH = 0.07
"""To each side of the midline: fraction of the body's height."""

NECK_SHAPE = (36, 50)
"""Rows and columns of a crop; its pixels are about square, 5 mm wide."""

NECK_SCALE_PERCENT = 99.0
"""A crop is divided by this percentile of its own: the record's scale tells of other bones."""

STEPS = 800
"""Steps of the neck's network: some 15 epochs of 3300 images."""

BATCH_SIZE = 64
VALIDATE_EVERY = 50

FACT_STRENGTHS = (1e-2, 1e-1, 1.0, 10.0)
"""Inverse regularisation strengths, of which validation accuracy chooses one."""

TEXT_FACTS = ("sex", "age_band", "manufacturer", "site_key", "view_rule", "notes")
SPACING = "pixel_spacing_mm"
DECILES = np.arange(0.1, 1.0, 0.1)

LIMITED = ("thumbnail", "neck")
"""The shortcuts that `--limit` holds down: those that see pixels."""


@dataclasses.dataclass(frozen=True)
class Body:
    """Where a body lies in an image, pixels.

    Attributes:
      crown: its first row.
      height: rows from the crown to below the feet.
      midline: column, at the height of the neck; the middle of column 0 is 0.5.
    """

    crown: int
    height: int
    midline: float


@dataclasses.dataclass(frozen=True)
class Sights:
    """What the shortcuts see of one split; images in the order of the data set.

    Attributes:
      thumbnails: a host batch of images summed over blocks of POOL.
      necks: the crops, and `scale` in counts a pixel of a crop.
      facts: values by name, of text or of numbers, NaN where unknown.
    """

    thumbnails: HostBatch
    necks: Scintigrams
    facts: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Shortcut:
    """What one shortcut reaches.

    Attributes:
      name: of the shortcut.
      sees: what it is given.
      scores: the five metrics by name.
      intervals: of the same, 95 %, resampled by patient; (low, high) by name, or None.
    """

    name: str
    sees: str
    scores: dict[str, float | None]
    intervals: dict[str, tuple[float, float] | None]


def find_body(counts: Int[np.ndarray, "height width"]) -> Body:
    """Finds the body by what is brighter than the image's own background.

    Small bright things beside it (a marker, a spill) are passed over. Where nothing is brighter,
    the whole image is the body.
    """
    height, width = counts.shape
    smooth = ndimage.gaussian_filter(counts.astype(np.float32), height / 256)
    body = _largest_parts(_brighter_than_background(np.sqrt(smooth)))
    rows = np.flatnonzero(body.any(1))
    if not len(rows):
        return Body(0, height, width / 2)
    crown, size = int(rows[0]), int(rows[-1] + 1 - rows[0])
    neck = body[crown + int(NECK_ROWS[0] * size) : crown + int(np.ceil(NECK_ROWS[1] * size))]
    columns = np.arange(width) + 0.5
    # The median over rows, because a raised arm or a cut shoulder moves the middle of a few.
    middles = [columns[row].mean() for row in neck if row.any()]
    return Body(crown, size, float(np.median(middles)) if middles else width / 2)


def _brighter_than_background(level: Float[np.ndarray, "height width"]) -> Bool[np.ndarray, "..."]:
    bright = level > level.mean()
    if not bright.any():
        return bright
    background, body = np.median(level[~bright]), np.median(level[bright])
    # Low enough for faint feet, and above the scatter around the body: between 0.2 and 0.5 the
    # crown of phantoms moves by less than 1 % of their height.
    return level > background + 0.3 * (body - background)


def _largest_parts(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """The connected parts of at least a twentieth of the largest: faint knees cut a body apart."""
    parts, count = ndimage.label(mask)
    if not count:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return (sizes >= sizes.max() / 20)[parts]


def neck_crop(
    counts: Int[np.ndarray, "height width"], body: Body
) -> Float[np.ndarray, "rows columns"]:
    """Sums the counts of the neck into NECK_SHAPE pixels; outside the image there are none."""
    top, bottom = (body.crown + share * body.height for share in NECK_ROWS)
    half = NECK_HALF_WIDTH * body.height
    rows = np.linspace(top, bottom, NECK_SHAPE[0] + 1)
    columns = np.linspace(body.midline - half, body.midline + half, NECK_SHAPE[1] + 1)
    crop = _resum(_resum(counts.astype(np.float64), rows).T, columns).T
    return crop.astype(np.float32)


def _resum(
    counts: Float[np.ndarray, "row column"], edges: Float[np.ndarray, " edge"]
) -> np.ndarray:
    """Sums rows between fractional edges; a row that an edge cuts is shared out by its parts."""
    summed = np.concatenate([np.zeros((1, counts.shape[1])), counts.cumsum(0)])
    edges = edges.clip(0, len(counts))
    below = np.minimum(edges.astype(int), len(counts) - 1)
    share = (edges - below)[:, None]
    sums = np.diff(summed[below] * (1 - share) + summed[below + 1] * share, axis=0)
    # Rounding makes tiny negative numbers of no counts, and those have no square root.
    return np.maximum(sums, 0)


def read_sights(
    data_dir: Path,
    split: str,
    *,
    fold: int = NO_FOLD,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sights:
    """Reads one split once, and keeps what the shortcuts see of it.

    Args:
      data_dir: where the data set lies.
      split: its name.
      fold: as for `load_split`.
      progress: told how many of how many images were read.

    Raises:
      DscintError: as `load_split`.
    """
    images = load_split(data_dir, split, pool=READ_POOL, cache_gib=0, fold=fold)
    chunks = []
    for start in range(0, len(images), 64):
        batch = images.read(np.arange(start, min(start + 64, len(images))))
        chunks.append(_sights_of(batch))
        progress(min(start + 64, len(images)), len(images))
    columns = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    shared = {name: columns[name] for name in ("label", "mask", *IDENTITY_FIELDS)}
    thumbnails = shared | {"counts": columns["thumbnail"], "scale": columns["scale"]}
    necks = shared | {"counts": columns["neck"], "scale": columns["neck_scale"]}
    return Sights(
        thumbnails,
        dataclasses.replace(images, images=HeldImages(necks)),
        _facts(columns, _recorded_facts(data_dir, split, fold)),
    )


def _sights_of(batch: HostBatch) -> HostBatch:
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


def _recorded_facts(data_dir: Path, split: str, fold: int) -> dict[str, np.ndarray]:
    """Those of TEXT_FACTS and the pixel spacing that the data set's records have."""
    import tensorflow_datasets as tfds

    builder = open_dataset(data_dir)
    decoders = {name: tfds.decode.SkipDecoding() for name in ("image", "lesion_mask")}
    parts = parts_of(split, builder.info.splits, fold)
    records = builder.as_data_source(split="+".join(parts), decoders=decoders)
    names = [name for name in (*TEXT_FACTS, SPACING) if name in builder.info.features]
    rows = [{name: record[name] for name in names} for record in records]
    return {name: np.array([row[name] for row in rows]) for name in names}


def _facts(columns: HostBatch, recorded: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    facts = {"view": columns["view"]} | recorded | {"total_counts": columns["total_counts"]}
    spacing = recorded.get(SPACING, np.full(len(columns["crown"]), np.nan))
    return facts | {
        "body_height_mm": columns["body_height"] * spacing,
        "crown_mm": columns["crown"] * spacing,
    }


def fact_predictions(sights: dict[str, Sights], split: str) -> Int[np.ndarray, " image"]:
    """What logistic regression on the facts alone says of one split.

    Args:
      sights: of the splits 'train', 'validation' and `split`.
      split: the one to predict.
    """
    labels = {name: part.thumbnails["label"] for name, part in sights.items()}
    facts = {name: fact_table(sights["train"].facts, part.facts) for name, part in sights.items()}
    fit, _ = fit_logistic(OneHotEncoder(handle_unknown="ignore"), facts, labels, FACT_STRENGTHS)
    return fit.predict(facts[split])


def fact_table(
    train: dict[str, np.ndarray], facts: dict[str, np.ndarray]
) -> Int[np.ndarray, "image fact"]:
    """Every fact as a category; a number is the tenth of the training images' range it lies in.

    Categories, because what a protocol gives away need not rise or fall with it.

    Args:
      train: the facts of the training images.
      facts: those to turn into a table.

    Returns:
      Columns in the order of `facts`; -1 for what no training image has.
    """
    return np.stack([_categories(train[name], values) for name, values in facts.items()], 1)


def _categories(train: np.ndarray, values: np.ndarray) -> Int[np.ndarray, " image"]:
    if np.issubdtype(train.dtype, np.number):
        known = train[np.isfinite(train)]
        edges = np.unique(np.quantile(known, DECILES)) if len(known) else np.zeros(0)
        return np.where(np.isfinite(values), np.searchsorted(edges, values), -1)
    known = np.unique(train)
    index = np.searchsorted(known, values).clip(max=len(known) - 1)
    return np.where(known[index] == values, index, -1)


def neck_config(*, steps: int, seed: int) -> Config:
    """The neck's network and its training: Dscint with four convolutions and no attention."""
    return Config(
        seed=seed,
        steps=steps,
        augmentation=Augmentation(mirror=0.5, translation=(0.06, 0.06)),
        model_options={
            "widths": (16, 32, 48, 48),
            "strides": (2, 1, 1, 1),
            "pool_after": (2, 3),
            "norm_layers": (0, 1, 2, 3),
            "standardised": False,
            "attention": "none",
            "attention_after": 1,
            "regions": (3, 3),
            "hidden": 32,
            "dropout": 0.2,
        },
        optimizer=Optimizer(learning_rate=3e-3, warmup_steps=30),
    )


def neck_predictions(
    necks: dict[str, Scintigrams],
    split: str,
    *,
    steps: int = STEPS,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Predictions:
    """Trains the neck's network; what it says of one split at its best by validation accuracy.

    Args:
      necks: crops by split; 'train' and 'validation' are used beside `split`.
      split: the one to predict.
      steps: of training.
      seed: of parameters, order, augmentation and dropout; on one machine the same seed gives the
        same predictions.
      progress: told how many of how many steps were taken.

    Raises:
      DscintError: the loss is no longer a number.
    """
    experiment = make_experiment(neck_config(steps=steps, seed=seed), necks["train"].class_counts)
    step_once = jax.jit(functools.partial(train_step, recipe=experiment.recipe))
    evaluate_once = jax.jit(functools.partial(eval_step, recipe=experiment.recipe))
    batch_size = min(BATCH_SIZE, len(necks["train"]))

    def predict(state, images: Scintigrams) -> Predictions:
        step = lambda batch: evaluate_once(  # noqa: E731
            state.params, state.statistics, device_fields(batch)
        )
        return predict_split(step, images, batch_size=batch_size)

    state, best, highest = experiment.initial_state(), None, None
    batches = training_batches(necks["train"], batch_size=batch_size, seed=seed, start=0)
    for step in range(1, steps + 1):
        state, _ = step_once(state, device_fields(next(batches)))
        if step % VALIDATE_EVERY == 0 or step == steps:
            found = predict(state, necks["validation"])
            if not np.isfinite(found.loss):
                raise DscintError(f"training on necks diverged at step {step}; use another --seed")
            # Of equal accuracies the one of the lower loss.
            rank = (np.trace(found.confusion), -found.loss)
            if highest is None or rank > highest:
                best, highest = state, rank
        progress(step, steps)
    return predict(best, necks[split])


def measure(
    sights: dict[str, Sights],
    split: str,
    *,
    steps: int = STEPS,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Shortcut]:
    """Fits every shortcut and scores it on one split; the most frequent class comes first.

    Args:
      sights: of the splits 'train', 'validation' and `split`.
      split: the one to score.
      steps: of the neck's network.
      seed: of the neck's network.
      progress: told how many of how many of its steps were taken.

    Raises:
      DscintError: the training images are of one class, or the network's loss is no number.
    """
    labels, patients = (sights[split].thumbnails[name] for name in ("label", "patient_key"))
    classes = sights[split].necks.classes
    if len(np.unique(sights["train"].thumbnails["label"])) < 2:
        raise DscintError("all training images are of one class; there is nothing to tell apart")

    def shortcut(name: str, sees: str, predicted: Int[np.ndarray, " image"]) -> Shortcut:
        scores = score_by_patient(labels, predicted, patients, len(classes))
        return Shortcut(name, sees, *scores)

    frequent = int(np.argmax(sights["train"].necks.class_counts))
    thumbnails = {name: part.thumbnails for name, part in sights.items()}
    linear = baseline_of(thumbnails, split, len(classes))
    necks = {name: part.necks for name, part in sights.items()}
    neck = neck_predictions(necks, split, steps=steps, seed=seed, progress=progress)
    return [
        shortcut(
            "most frequent class",
            f"nothing: always says {classes[frequent]}",
            np.full(len(patients), frequent),
        ),
        Shortcut(
            "thumbnail",
            f"the image at {linear.side[0]}x{linear.side[1]} pixels (logistic regression)",
            linear.scores,
            linear.intervals,
        ),
        shortcut(
            "neck",
            f"the neck at {NECK_SHAPE[0]}x{NECK_SHAPE[1]} pixels (small network)",
            neck.predicted,
        ),
        shortcut(
            "facts",
            f"{', '.join(sights[split].facts)} (logistic regression)",
            fact_predictions(sights, split),
        ),
    ]


def report_of(
    data_dir: Path, split: str, *, fold: int = NO_FOLD, steps: int = STEPS, seed: int = 0
) -> dict[str, Any]:
    """Reads the data set, fits every shortcut and scores it; shows progress meanwhile.

    Arguments are those of `read_sights` and `measure`.

    Returns:
      What the JSON file holds.

    Raises:
      DscintError: no data set, no such split, or a `fold` that does not fit the data set.
    """
    _check_fold(data_dir, fold)
    sights = {}
    for name in dict.fromkeys(("train", "validation", split)):
        with ProgressBar(f"reading {name}") as bar:
            sights[name] = read_sights(
                data_dir,
                name,
                fold=fold,
                progress=lambda done, total, bar=bar: bar.update(done, total=total),
            )
    batch_size = min(BATCH_SIZE, len(sights["train"].necks))
    with ProgressBar("training on necks", total=steps, rate_factor=batch_size) as bar:
        shortcuts = measure(
            sights, split, steps=steps, seed=seed, progress=lambda done, total: bar.update(done)
        )
    scored = sights[split]
    return {
        "dataset_fingerprint": scored.necks.fingerprint,
        "split": split,
        "fold": fold,
        "seed": seed,
        "steps": steps,
        "images": len(scored.necks),
        "patients": len(np.unique(scored.thumbnails["patient_key"])),
        "classes": list(scored.necks.classes),
        "intervals": "95 %, percentile bootstrap over the patients of each class, 2000 resamples",
        "shortcuts": [dataclasses.asdict(shortcut) for shortcut in shortcuts],
    }


def print_table(report: dict[str, Any]) -> None:
    """Prints what every shortcut reaches."""
    console = Console(width=max(shutil.get_terminal_size().columns, 80), highlight=False)
    title = f"{report['split']}, {report['images']} images of {report['patients']} patients"
    table = Table(title=title)
    for column in ("shortcut", "accuracy", "95 % interval", "F-1", "sees"):
        table.add_column(column, justify="left" if column in ("shortcut", "sees") else "right")
    for shortcut in report["shortcuts"]:
        table.add_row(
            shortcut["name"],
            f"{shortcut['scores']['accuracy']:.4f}",
            interval_in_words(shortcut["intervals"]["accuracy"]),
            f"{shortcut['scores']['f1']:.4f}",
            shortcut["sees"],
        )
    console.print(table)


def reaching(report: dict[str, Any], limit: float) -> list[str]:
    """Names of those of LIMITED whose accuracy is `limit` or more."""
    return [
        shortcut["name"]
        for shortcut in report["shortcuts"]
        if shortcut["name"] in LIMITED and shortcut["scores"]["accuracy"] >= limit
    ]


def _check_fold(data_dir: Path, fold: int) -> None:
    folds = folds_of(open_dataset(data_dir).info.splits)
    if folds and not 0 <= fold < len(folds):
        raise DscintError(
            f"{data_dir} is divided into {len(folds)} folds; give one with --fold, 0 to "
            f"{len(folds) - 1}"
        )
    if not folds and fold != NO_FOLD:
        raise DscintError(f"{data_dir} is not divided into folds; leave --fold out")


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="python -m dscint_jax.shortcuts",
        description="Measure how far trivial classifiers go on a data set: on thumbnails, on the "
        "neck alone, on the facts of the acquisition alone.",
    )
    parser.add_argument("--data_dir", type=Path, required=True, help="where the data set lies")
    parser.add_argument("--split", default="test", help="the split to score (default: test)")
    parser.add_argument(
        "--fold", type=int, default=NO_FOLD, help="of a data set in folds, the one to test on"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the neck's network (default: 0)")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help=f"of the neck's network (default: {STEPS})"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write the scores to")
    parser.add_argument(
        "--limit",
        type=float,
        help="exit with status 1 if thumbnail or neck has this accuracy or more",
    )
    return parser


def main() -> None:
    """The command line."""
    arguments = _parser().parse_args()
    if arguments.limit is not None and not 0 < arguments.limit <= 1:
        raise DscintError(f"--limit {arguments.limit} is not an accuracy; give one up to 1")
    if arguments.steps < 2:
        raise DscintError(f"--steps {arguments.steps} is too few; give 2 or more")
    if arguments.seed < 0:
        raise DscintError(f"--seed {arguments.seed} is negative; give 0 or more")
    if arguments.out and arguments.out.is_dir():
        raise DscintError(f"--out {arguments.out} is a folder; name a file in it")
    report = report_of(
        arguments.data_dir,
        arguments.split,
        fold=arguments.fold,
        steps=arguments.steps,
        seed=arguments.seed,
    )
    print_table(report)
    if arguments.out:
        write_json(arguments.out, report)
    if arguments.limit is not None and (names := reaching(report, arguments.limit)):
        print(f"limit {arguments.limit} reached by: {', '.join(names)}")
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
