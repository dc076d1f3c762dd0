"""Compares runs on the same test images, patient by patient; needs no JAX and no data set.

    python -m dscint_jax.compare runs/dscint runs/dscint_seed1 runs/resnet18 runs/resnet18_seed1

In: work directories after `dscint_jax.evaluate`. Out: a table of the networks, one of every pair of
them, and, with `--out`, both as JSON. Runs whose configs differ in the seed alone are one network,
if all or none were evaluated with `--mirror`.
"""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from dscint_jax.config import MAY_CHANGE, flat
from dscint_jax.metrics.discrimination import auroc
from dscint_jax.metrics.paired_tests import (
    Difference,
    compare_areas,
    compare_metrics,
    holm,
    mcnemar,
    seed_mean_intervals,
)
from dscint_jax.metrics.predictions import Predictions, read_predictions
from dscint_jax.metrics.scores import (
    METRIC_NAMES,
    defined,
    five_metrics,
    in_words,
    p_in_words,
    spread_in_words,
)
from tfds_builder.commandline.command import CommandParser
from tfds_builder.commandline.errors import UserError, run_command
from tfds_builder.commandline.files import read_json, write_json
from tfds_builder.commandline.progress import say, show

RECORDS, STUDIES, PATIENTS = "records", "studies", "patients"
UNITS = {RECORDS: "", STUDIES: "study_key", PATIENTS: "patient_key"}


class UnlikeError(UserError):
    """Runs were evaluated on other images, labels or classes."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One evaluated run.

    Attributes:
      workdir: its work directory.
      config: what config.json holds.
      fingerprint: of the data set that it was evaluated on.
      predictions: on the split, sorted by image_id.
      step: of the checkpoint that was evaluated; None of an ensemble.
      augmentation: 'mirror' where mirror images were read too; None where they were not.
    """

    workdir: Path
    config: dict[str, Any]
    fingerprint: str
    predictions: Predictions
    step: int | None
    augmentation: str | None


@dataclasses.dataclass(frozen=True)
class Network:
    """Runs of one config, evaluated in one way, seed by seed.

    Attributes:
      name: of the model; where several have it, with the folder of the first run.
      runs: in the order of their seeds.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def confusions(self) -> np.ndarray:
        """Confusion matrices by seed and patient."""
        return np.stack([run.predictions.confusions() for run in self.runs])

    def scores_of(self, label: int) -> list[np.ndarray]:
        """The probability of a class by seed and image."""
        return [run.predictions.probabilities[:, label] for run in self.runs]


def compare(
    workdirs: Sequence[Path],
    *,
    split: str = "test",
    name: str = "",
    unit: str = RECORDS,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares runs on the same images.

    Args:
      workdirs: of evaluated runs.
      split: which evaluation.
      name: of another data set than the one trained on, as in eval/NAME/SPLIT; '': that one.
      unit: 'records', or 'studies' or 'patients', whose images are read together by the mean of
        their probabilities.
      resamples: of intervals, and the fewest permutations of a test.
      seed: of both.

    Returns:
      Plain values: `networks`, the scores of each; `pairs`, the differences of every two.

    Raises:
      UserError: a run was not evaluated, or runs were evaluated on other images or classes.
    """
    if len({path.absolute() for path in workdirs}) != len(workdirs):
        raise UserError("a work directory is given twice; give each once")
    runs = [read_run(workdir, Path(name) / split, unit) for workdir in workdirs]
    for run in runs[1:]:
        check_alike(runs[0], run)
    networks = _networks(runs)
    if len(networks) < 2:
        raise UserError(
            f"there is nothing to compare: all runs are of one network, {networks[0].name}; give "
            f"runs of another config too"
        )
    found = compare_networks(
        networks, [*itertools.combinations(networks, 2)], resamples=resamples, seed=seed
    )
    return {"split": split, "data_set": name or None, "unit": unit, **found}


def compare_networks(
    networks: Sequence[Network],
    pairs: Sequence[tuple[Network, Network]],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """The scores of networks, and the differences of some pairs of them.

    Errors and what is not named here are those of `compare`.

    Args:
      networks: all evaluated on the same images.
      pairs: of them; p values are corrected for all of these (Holm).
    """
    every = [run for network in networks for run in network.runs]
    for run in every[1:]:
        check_alike(every[0], run)
    # So many that Holm's p of the clearest difference can be a twentieth of 0.05.
    rows = max(len(pairs), 1) * len(METRIC_NAMES)
    times = {"resamples": resamples, "permutations": max(resamples, 400 * rows), "seed": seed}
    found = [_pair(first, second, **times) for first, second in pairs]
    for table in ("metrics", "areas"):
        tests = [values for pair in found for values in pair[table].values()]
        p_values = np.array([values["p"] for values in tests], float)
        for values, adjusted in zip(tests, holm(p_values), strict=True):
            values["p_holm"] = defined(adjusted)
    first = every[0].predictions
    return {
        "dataset_fingerprint": every[0].fingerprint,
        "support": len(first),
        "patients": len(np.unique(first.patients)),
        "classes": list(first.classes),
        "resamples": resamples,
        "permutations": times["permutations"],
        "networks": [_scores(network, resamples=resamples, seed=seed) for network in networks],
        "pairs": found,
    }


def read_run(workdir: Path, place: Path, unit: str) -> Run:
    """Reads what an evaluation left.

    Args:
      workdir: of the run.
      place: of the results below eval/, such as 'test'.
      unit: one of UNITS.

    Raises:
      UserError: it was not evaluated there, or no unit has images of one class alone.
    """
    if not (workdir / "config.json").exists():
        raise UserError(f"{workdir} holds no config.json, so no run")
    folder = workdir / "eval" / place
    predictions = read_predictions(folder / "predictions.csv")
    if UNITS[unit]:
        predictions, left_out = predictions.combined(UNITS[unit])
        if not len(predictions):
            raise UserError(
                f"{folder}: the images of each of the {left_out} {unit} have several classes; "
                f"compare --unit {RECORDS}"
            )
    else:
        predictions = predictions.only(np.argsort(predictions.facts["image_id"], kind="stable"))
    told = read_json(folder / "metrics.json")
    if "dataset_fingerprint" not in told:
        raise UserError(f"{folder / 'metrics.json'} lacks dataset_fingerprint; evaluate again")
    return Run(
        workdir,
        read_json(workdir / "config.json"),
        told["dataset_fingerprint"],
        predictions,
        told.get("step"),
        told.get("test_time_augmentation"),
    )


def check_alike(first: Run, run: Run) -> None:
    """Raises UnlikeError unless two runs were evaluated on the same images, labels and classes."""
    ours, theirs = first.predictions, run.predictions
    both = f"{first.workdir} and {run.workdir}"
    if ours.classes != theirs.classes:
        raise UnlikeError(
            f"{both} have other classes ({', '.join(ours.classes)}; {', '.join(theirs.classes)}); "
            f"compare runs of the same classes"
        )
    same = len(ours) == len(theirs) and all(
        np.array_equal(ours.facts[key], theirs.facts[key]) for key in ("image_id", "patient_key")
    )
    if first.fingerprint != run.fingerprint or not same:
        raise UnlikeError(
            f"{both} were evaluated on other images; evaluate both on the same split of the same "
            f"data set, with the same records"
        )
    if not np.array_equal(ours.labels, theirs.labels):
        raise UnlikeError(f"{both} have other labels for the same images; evaluate both again")


def _networks(runs: Sequence[Run]) -> list[Network]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        config = {k: v for k, v in flat(run.config).items() if k not in ("seed", *MAY_CHANGE)}
        key = json.dumps([config, run.augmentation], sort_keys=True)
        groups.setdefault(key, []).append(run)
    models = [group[0].config["model"] for group in groups.values()]
    networks = []
    for model, group in zip(models, groups.values(), strict=True):
        folder = "" if models.count(model) == 1 else f" ({group[0].workdir})"
        by_seed = sorted(group, key=lambda run: run.config["seed"])
        for one, other in itertools.pairwise(by_seed):
            if one.config["seed"] == other.config["seed"]:
                raise UserError(
                    f"{one.workdir} and {other.workdir} have the same config and the same seed, "
                    f"which counts once; leave one of them out"
                )
        networks.append(Network(model + folder, tuple(by_seed)))
    return networks


def _scores(network: Network, *, resamples: int, seed: int) -> dict[str, Any]:
    by_seed = five_metrics(network.confusions.sum(1))
    bounds = seed_mean_intervals(network.confusions, resamples=resamples, seed=seed)
    first = network.runs[0].predictions
    return {
        "name": network.name,
        "runs": [str(run.workdir) for run in network.runs],
        "seeds": [run.config["seed"] for run in network.runs],
        "metrics": {
            name: {**_spread(values), "interval": bounds[name]} for name, values in by_seed.items()
        },
        "areas": {
            label: _spread(np.array([auroc(s, first.labels == i) for s in network.scores_of(i)]))
            for i, label in enumerate(first.classes)
        },
    }


def _spread(values: np.ndarray) -> dict[str, Any]:
    return {
        "mean": defined(values.mean()),
        "sd": defined(values.std(ddof=1)) if len(values) > 1 else None,
        "by_seed": [defined(value) for value in values],
    }


def _pair(first: Network, second: Network, **times: int) -> dict[str, Any]:
    ours, theirs = first.confusions, second.confusions
    images = first.runs[0].predictions
    metrics = compare_metrics(ours, theirs, **times)
    areas = {
        label: compare_areas(
            first.scores_of(i), second.scores_of(i), images.labels == i, images.patients
        )
        for i, label in enumerate(images.classes)
    }
    if len(images.classes) == 2:
        # The first class's area is the second's, and the mean specificity the mean recall.
        del metrics["specificity"], areas[images.classes[0]]
    found: dict[str, Any] = {
        "first": first.name,
        "second": second.name,
        "metrics": {name: _plain(difference) for name, difference in metrics.items()},
        "areas": {label: _plain(difference) for label, difference in areas.items()},
        "mcnemar": None,
    }
    if len(ours) == len(theirs) == 1:
        right = [np.trace(m[0], axis1=1, axis2=2) == m[0].sum((1, 2)) for m in (ours, theirs)]
        only_first, only_second, p = mcnemar(*right)
        found["mcnemar"] = {"only_first": only_first, "only_second": only_second, "p": p}
    return found


def _plain(difference: Difference) -> dict[str, float | None]:
    return {name: defined(value) for name, value in dataclasses.asdict(difference).items()}


def print_comparison(result: dict[str, Any]) -> None:
    """Prints the scores of the networks, then every pair's differences."""
    noun = "images or studies" if result["unit"] == RECORDS else result["unit"]
    place = " ".join(filter(None, (result["data_set"], result["split"])))
    title = f"{place}: {result['support']} {noun} of {result['patients']} patients"
    table = Table("network", "seeds", *METRIC_NAMES, title=title)
    for network in result["networks"]:
        cells = (spread_in_words(network["metrics"][name]) for name in METRIC_NAMES)
        table.add_row(network["name"], str(len(network["seeds"])), *cells)
    show(table)
    for pair in result["pairs"]:
        title = f"{pair['first']} minus {pair['second']}"
        table = Table("", "difference", "95 % interval", "p", "p (Holm)", title=title)
        areas = {f"AUROC {label}": values for label, values in pair["areas"].items()}
        for name, values in {**pair["metrics"], **areas}.items():
            bounds = f"{in_words(values['low'], 3)} to {in_words(values['high'], 3)}"
            table.add_row(
                name,
                in_words(values["value"]),
                bounds if values["low"] is not None else in_words(None),
                *(p_in_words(values[p]) for p in ("p", "p_holm")),
            )
        show(table)
        if found := pair["mcnemar"]:
            say(
                f"Patients read without an error by {pair['first']} alone: "
                f"{found['only_first']}, by {pair['second']} alone: "
                f"{found['only_second']}; McNemar's exact p {p_in_words(found['p'])}"
            )
    say(
        f"Metrics: paired bootstrap and {result['permutations']} permutations of patients, so that "
        f"p is at least 1/{result['permutations'] + 1}. AUROC: DeLong, with patients as clusters. "
        "Holm: over all rows of a kind, of all pairs."
    )


def main() -> None:
    """The command line."""
    parser = CommandParser(
        prog="python -m dscint_jax.compare",
        description="Compare evaluated runs on the same images, patient by patient.",
    )
    parser.add_argument("workdirs", metavar="RUN", nargs="+", type=Path, help="work directory")
    parser.add_argument("--split", default="test", help="train, validation or test (default: test)")
    parser.add_argument("--name", default="", help="of another data set than the one trained on")
    parser.add_argument(
        "--unit",
        choices=UNITS,
        default=RECORDS,
        help="what is counted: the records of the data set, or studies or patients, whose images "
        "are read together by their mean probabilities (default: records)",
    )
    parser.add_argument("--resamples", type=int, default=2000, help="for intervals (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples (default: 0)")
    parser.add_argument("--out", type=Path, help="file to write the result to, as JSON")
    arguments = vars(parser.parse_args())
    out = arguments.pop("out")
    if arguments["resamples"] < 100:
        raise UserError(f"--resamples {arguments['resamples']} is too few; give at least 100")
    result = compare(**arguments)
    print_comparison(result)
    if out:
        write_json(out, result)


if __name__ == "__main__":
    run_command(main)
