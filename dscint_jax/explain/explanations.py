"""What a trained network looks at on one split, and whether that is where the lesions are.

    python -m dscint_jax.explain --workdir runs/quickstart/dscint --split test

In: a work directory that training filled, and its data set, or another one (`--data_dir`). Out:
explanations.json in the folder of the split's results, and tables.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from rich.box import SIMPLE_HEAD
from rich.table import Table

from dscint_jax.evaluate.evaluate import or_elsewhere, result_folder
from dscint_jax.evaluate.restored import TrainedNetwork, load_trained
from dscint_jax.explain import TOLERANCE_MM
from dscint_jax.explain.lesions import GROUPS, LesionRecord, group_masks, lesion_records, lesions_of
from dscint_jax.explain.maps import METHODS, Explained, by_method, explain, full_batch
from dscint_jax.explain.scores import (
    BASELINES,
    CENTRE,
    POINTING,
    RANDOM,
    SCORES,
    baseline_maps,
    energy,
    pointing,
    rank_correlation,
    region_of,
)
from dscint_jax.explain.summary import MAP_TITLES, METHOD, agreement, score_table, verdicts
from dscint_jax.input_pipeline import IDENTITY_FIELDS, NOUNS
from dscint_jax.metrics.intervals import LEVEL
from dscint_jax.metrics.predictions import Predictions
from dscint_jax.metrics.scores import defined, in_words, interval_in_words
from tfds_builder.commandline.command import available_cores
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import write_json
from tfds_builder.commandline.progress import ProgressBar, say, show

EXPLANATIONS_FILE = "explanations.json"

SCORED, NO_LESION, NO_PIXEL_SIZE = "scored", "without_lesions", "pixel_size_unknown"
"""What becomes of an image: its maps are scored, or why they are not."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured of each explained image.

    Attributes:
      predictions: what the network says of them.
      grids: rows and columns of each method's map, before it is brought to the image's.
      state: SCORED, or why the image is not.
      scores: on the lesions of each of GROUPS, by SCORES; NaN where an image has none.
      correlations: of each method's map with that of random weights.
    """

    predictions: Predictions
    grids: dict[str, list[int]]
    state: np.ndarray
    scores: Float[np.ndarray, "image group map score"]
    correlations: Float[np.ndarray, "image method"]

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the maps, the BASELINES last."""
        return (*self.grids, *BASELINES)


def write_explanations(
    workdir: Path,
    *,
    split: str,
    checkpoint: str,
    limit: int | None = None,
    tolerance_mm: float = TOLERANCE_MM,
    data_dir: Path | None = None,
    name: str | None = None,
    out: Path | None = None,
    told: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Explains a split, scores the maps where records have lesions, and writes the file.

    Arguments and errors are those of `load_trained`, and:

    Args:
      limit: explain no more images, spread over the split; None: all.
      tolerance_mm: how far from a lesion the maximum of a map may lie.
      name, out: as for `evaluate`.
      told: gets the result before it is written.

    Returns:
      What explanations.json holds.

    Raises:
      UserError: a value does not fit.
    """
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit} explains nothing; give 1 or more, or leave it out")
    if not 0 <= tolerance_mm < math.inf:
        raise UserError(f"--tolerance {tolerance_mm} is no distance; give 0 or more, in mm")
    folder = result_folder(workdir, split, data_dir=data_dir, name=name, out=out)
    network = load_trained(workdir, split=split, checkpoint=checkpoint, data_dir=data_dir)
    images = network.images
    count = min(limit or len(images), len(images))
    indices = np.arange(count) * len(images) // count
    measured = measure(network, indices, tolerance_mm)
    reason = _not_scored(network, measured)
    result = {
        "split": images.split,
        "step": network.step,
        "data_set": None if network.trained_on else folder.parent.name,
        "dataset_fingerprint": images.fingerprint,
        "records": images.records,
        "classes": list(images.classes),
        "images_of_split": len(images),
        "images": count,
        **{state: int(np.sum(measured.state == state)) for state in (NO_LESION, NO_PIXEL_SIZE)},
        "class_explained": "true",
        "grids": measured.grids,
        "tolerance_mm": tolerance_mm,
        "not_scored": reason,
        "scores": None
        if reason
        else score_table(measured.scores, measured.predictions, measured.maps),
        "random_weights": agreement(
            measured.correlations, measured.predictions, tuple(measured.grids)
        ),
        "intervals": {"method": METHOD, "level": LEVEL},
        "by_image": _by_image(measured),
    }
    told(result)
    with or_elsewhere(out):
        write_json(folder / EXPLANATIONS_FILE, result)
    return result


def measure(
    network: TrainedNetwork,
    indices: Int[np.ndarray, " image"],
    tolerance_mm: float,
) -> Measured:
    """Explains images of the network's split, and scores the maps of those with known lesions."""
    untrained = network.with_random_weights()
    records = lesion_records(network.config, network.images)
    found = by_method(network.maps(full_batch(network, indices[:1])))
    grids = {name: list(values.shape[-2:]) for name, values in found.items()}
    noun = network.images.noun
    rows: list[tuple[Any, ...]] = []

    def row(image: tuple[Explained, Explained, LesionRecord | None]) -> tuple[Any, ...]:
        item, other, record = image
        correlations = [
            rank_correlation(heat, other.heat[method], item.views)
            for method, heat in item.heat.items()
        ]
        return item.label, item.probabilities, *_scores(item, record, tolerance_mm), correlations

    explained, others = explain(network, indices), explain(untrained, indices)
    with (
        ProgressBar(f"explaining {noun}", total=len(indices), noun=noun) as bar,
        # NumPy and SciPy let other threads go on while they sort, sum and measure distances.
        ThreadPoolExecutor(available_cores()) as threads,
    ):
        for start in range(0, len(indices), network.batch_size):
            chosen = indices[start : start + network.batch_size]
            maps = [list(itertools.islice(each, len(chosen))) for each in (explained, others)]
            rows += threads.map(row, zip(*maps, records(chosen), strict=True))
            bar.update(len(rows))
    labels, probabilities, state, scores, correlations = map(np.stack, zip(*rows, strict=True))
    keys = network.images.keys()
    predictions = Predictions(
        classes=network.images.classes,
        labels=labels,
        predicted=probabilities.argmax(1),
        probabilities=probabilities,
        facts={name: keys[name][indices] for name in IDENTITY_FIELDS},
    )
    return Measured(predictions, grids, state, scores, correlations)


def _scores(
    item: Explained, record: LesionRecord | None, tolerance_mm: float
) -> tuple[str, Float[np.ndarray, "group map score"]]:
    """What becomes of an image, and the scores of its maps, NaN where there are none."""
    scores = np.full((len(GROUPS), len(item.heat) + len(BASELINES), len(SCORES)), np.nan)
    if record is None or not record.mask.any():
        return NO_LESION, scores
    if not record.measurable:
        return NO_PIXEL_SIZE, scores
    side = record.mask.shape[-1] // item.views.shape[-1]
    maps = [*item.heat.values(), *baseline_maps(item.views, record.pooled(side)).values()]
    for groups, mask in group_masks(record, lesions_of(record, side)):
        region = region_of(mask, record.pixel_mm, side, tolerance_mm)
        scores[groups] = [[pointing(heat, region), energy(heat, region)] for heat in maps]
    return SCORED, scores


def _not_scored(network: TrainedNetwork, measured: Measured) -> str | None:
    """Why no map is scored; None where some are."""
    if network.images.copies:
        return "the images are copies that were moved, and the lesion masks were not"
    if (measured.state == SCORED).any():
        return None
    if (measured.state == NO_PIXEL_SIZE).any():
        return "no record of an image with lesions says how large a pixel is"
    return f"none of the {network.images.noun} has a lesion mask"


def _by_image(measured: Measured) -> list[dict[str, Any]]:
    """The scores of each image on all its lesions."""
    said = measured.predictions
    return [
        {
            "image_id": str(said.facts["image_id"][n]),
            "label": said.classes[said.labels[n]],
            "predicted": said.classes[said.predicted[n]],
            "state": str(measured.state[n]),
            **{
                score: dict(zip(measured.maps, map(defined, values), strict=True))
                for score, values in zip(SCORES, measured.scores[n, 0].T, strict=True)
            },
            "random_weights": dict(
                zip(measured.grids, map(defined, measured.correlations[n]), strict=True)
            ),
        }
        for n in range(len(said))
    ]


def print_tables(result: Mapping[str, Any]) -> None:
    """Prints the scores of each map, and what random weights say of it, within 80 columns."""
    noun = NOUNS[result["records"]]
    split = " ".join(filter(None, (result["data_set"], result["split"])))
    say(
        f"{split}, step {result['step']}: {result['images']} of {result['images_of_split']} {noun} "
        f"explained"
    )
    if result["not_scored"]:
        say(f"Not scored: {result['not_scored']}.")
    else:
        _print_scores(result, noun)
    for method, found in result["random_weights"].items():
        say(
            f"{METHODS[method]} with random weights: rank correlation "
            f"{in_words(found['rank_correlation'], 2)} ({interval_in_words(found['interval'])})"
        )


def _print_scores(result: Mapping[str, Any], noun: str) -> None:
    scores = result["scores"]
    every = scores["all"]
    say(
        f"{every['images']} {noun} of {every['patients']} patients with lesions; tolerance "
        f"{result['tolerance_mm']:g} mm"
    )
    table = _table("map", "pointing", "95 % interval", "energy", "95 % interval")
    maps = [name for name in every[POINTING] if " - " not in name]
    for name in maps:
        cells = []
        for score in SCORES:
            found = every[score][name]
            cells += [in_words(found["mean"], 3), interval_in_words(found["interval"])]
        table.add_row(MAP_TITLES[name], *cells)
    show(table)
    for verdict in verdicts(every[POINTING]):
        say(verdict)
    maps = [name for name in maps if name not in (RANDOM, CENTRE)]
    table = _table("pointing, by", noun, *(MAP_TITLES[name] for name in maps))
    for kind, groups in scores.items():
        if kind != "all":
            for group, found in groups.items():
                means = (found[POINTING][name]["mean"] for name in maps)
                cells = ("-" if mean is None else f"{mean:.3f}" for mean in means)
                table.add_row(f"{kind} {group}".replace("_", " "), str(found["images"]), *cells)
            table.add_section()
    show(table)
    for state, why in (
        (NO_LESION, "without lesions"),
        (NO_PIXEL_SIZE, "with lesions, whose records do not say how large a pixel is"),
    ):
        if result[state]:
            say(f"Left out: {result[state]} {noun} {why}.")


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, column in enumerate(columns):
        # Where it is narrow, heads are folded, and not the names of groups.
        table.add_column(column, justify="right" if number else "left", no_wrap=not number)
    return table
