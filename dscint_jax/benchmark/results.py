"""What the cells of a benchmark found, in one folder that can be published: results.json.

In: the work directories of the cells. Out: `results.json` with a checksum, and beside it, below
`cells/`, each run's configs, provenance, metrics and predictions; no checkpoints. A benchmark goes
on from a copy of these cells.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dscint_jax.benchmark.cells import (
    all_cells,
    check_plan,
    chosen_rate,
    failure_of,
    folder_of,
    is_tested,
    validation_score,
)
from dscint_jax.benchmark.plan import Benchmark, Cell
from dscint_jax.compare import RECORDS, Network, Run, compare_networks, read_run
from dscint_jax.config import AUGMENTED, PATIENT
from dscint_jax.metrics.paired_tests import compare_metrics
from dscint_jax.metrics.scores import defined, five_metrics, one_vs_rest
from dscint_jax.models.cost import network_cost
from dscint_jax.run.provenance import attempts_of
from dscint_jax.run.trackers.json_lines import read_lines
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import read_json, write_bytes, write_json

RESULTS_FILE, CELLS = "results.json", "cells"
COMPLETE, FAILED, OPEN = "complete", "failed", "open"
METRICS, PREDICTIONS = Path("eval/test/metrics.json"), Path("eval/test/predictions.csv.gz")
CONFIGS = ("benchmark.json", "config.json")
"""Of a cell: what was asked for, and that with all durations and options resolved."""
KEPT = ("train_metrics.jsonl", "train_speed.jsonl")
TRAINED = (*CONFIGS, *KEPT, "provenance.json")
CHECKED = (*TRAINED, str(METRICS))
"""What a checksum is kept of, beside the predictions."""
STACK = ("versions", "python", "processor", "cores", "devices", "device_count", "xla_flags")
"""What of an attempt may change the bits of a run."""
IMAGE = (1024, 256)
"""Rows and columns of a scintigram before its pixels are summed."""


def collect(plan: Benchmark, workdir: Path, out: Path) -> dict[str, Any]:
    """Writes the folder of results, of as many cells as are complete; returns results.json.

    Raises:
      UserError: a file of a cell is damaged, or cells were run on different data or by another
        plan.
    """
    for cell in all_cells(plan, workdir):
        check_plan(plan, workdir, cell)
    cells, trials = [], []
    for name in (*plan.networks, *plan.ablations):
        rate = chosen_rate(plan, workdir, name)
        # Before a rate is chosen, the cells stand in the table without one.
        chosen = plan.cells(name, plan.learning_rates[0] if rate is None else rate)
        cells += [_collected(workdir, cell, out, rate is not None) for cell in chosen]
        for cell in plan.trials(name) if name in plan.networks else ():
            if validation_score(workdir, cell) is not None:
                place = out / CELLS / cell.place
                _keep(folder_of(workdir, cell), place, KEPT)
                trials.append({**dataclasses.asdict(cell), "sha256": _checksums(place, TRAINED)})
    results = {
        "first": plan.first,
        "conditions": [
            {"name": name, "fields": dict(fields), "protocol": _protocol(plan, name)}
            for name, fields in plan.conditions.items()
        ],
        "seeds": list(plan.seeds),
        "learning_rates": list(plan.learning_rates),
        "base": plan.base.replaced({"data.dir": ""}).to_dict(),
        "networks": [_network(plan, workdir, name) for name in (*plan.networks, *plan.ablations)],
        "cells": cells,
        "trials": trials,
    }
    results["tables"] = tables_of(results, out)
    results = json.loads(json.dumps(results))
    write_json(out / RESULTS_FILE, {**results, "sha256": checksum(results)})
    return results


def checksum(results: Mapping[str, Any]) -> str:
    """Of results.json without its checksum."""
    content = {name: value for name, value in results.items() if name != "sha256"}
    return sha256(json.dumps(content, sort_keys=True).encode())


def place_of(cell: Mapping[str, Any]) -> Path:
    """Where the files of a cell of results.json lie, in the folder of results."""
    named = Cell(*(cell[field.name] for field in dataclasses.fields(Cell)))
    return CELLS / named.place


def _protocol(plan: Benchmark, condition: str) -> str:
    return plan.config(Cell(plan.first, condition, plan.learning_rates[0], 0)).protocol


def _network(plan: Benchmark, workdir: Path, name: str) -> dict[str, Any]:
    config = plan.config(plan.cells(name, plan.learning_rates[0])[0])
    size = IMAGE[0] // config.data.pool, IMAGE[1] // config.data.pool
    cost = None
    # Of a network that cannot be made, its cells say why.
    with contextlib.suppress(UserError):
        cost = network_cost(config.model, size=size, options=config.model_options)
    trials = plan.trials(name) if name in plan.networks and len(plan.learning_rates) > 1 else []
    return {
        "name": name,
        "is_ablation": name in plan.ablations,
        "model": config.model,
        "parameters": cost and cost.parameters,
        "flops": cost and cost.flops,
        "learning_rate": chosen_rate(plan, workdir, name),
        "validation_f1": [[c.learning_rate, validation_score(workdir, c)] for c in trials],
    }


def _collected(workdir: Path, cell: Cell, out: Path, chosen: bool) -> dict[str, Any]:
    found = {**dataclasses.asdict(cell), "status": OPEN}
    if (reason := failure_of(workdir, cell)) is not None:
        return {**found, "status": FAILED, "reason": reason}
    if not chosen or not is_tested(workdir, cell):
        return found
    source, place = folder_of(workdir, cell), out / CELLS / cell.place
    _keep(source, place, (*KEPT, str(METRICS)))
    packed = source / PREDICTIONS
    plain = packed.with_suffix("")
    predictions = plain.read_bytes() if plain.exists() else _unpacked(packed)
    write_bytes(place / PREDICTIONS, gzip.compress(predictions, mtime=0))
    return {
        **found,
        "status": COMPLETE,
        **_facts(place),
        "sha256": {**_checksums(place, CHECKED), "predictions": sha256(predictions)},
    }


def _facts(place: Path) -> dict[str, Any]:
    """What the kept files of a cell tell of it."""
    attempts, told = attempts_of(place), read_json(place / METRICS)
    speed = [line["images_per_second"] for line in read_lines(place / "train_speed.jsonl")[1:]]
    return {
        "step": told["step"],
        "metrics": metrics_of(place),
        "leakage": told["leakage"],
        "dataset_fingerprint": attempts[-1]["dataset_fingerprint"],
        "git": attempts[-1]["git"],
        "stack": {name: attempts[-1].get(name) for name in STACK},
        "attempts": len(attempts),
        "images_per_second": float(np.median(speed)) if speed else None,
    }


def _checksums(place: Path, names: Sequence[str]) -> dict[str, str]:
    return {name: sha256((place / name).read_bytes()) for name in names}


def metrics_of(place: Path) -> dict[str, float | None]:
    """The five metrics that the predictions in a work directory give."""
    run = read_run(place, Path("test"), RECORDS)
    return {n: defined(v) for n, v in five_metrics(run.predictions.confusions().sum(0)).items()}


def _keep(source: Path, place: Path, names: Sequence[str]) -> None:
    """Copies what tells of a training, and files of those names; no places of that machine."""
    for name in names:
        # Whole at any moment: other processes may collect the same cells.
        write_bytes(place / name, (source / name).read_bytes())
    for name in CONFIGS:
        config = read_json(source / name)
        config["data"]["dir"] = ""
        write_json(place / name, config)
    attempts = [{**attempt, "arguments": []} for attempt in attempts_of(source)]
    write_json(place / "provenance.json", attempts)


def _unpacked(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def sha256(content: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def check_files(results: Mapping[str, Any], folder: Path) -> None:
    """Raises UserError where a file of the folder is not the one that results.json tells of."""
    if checksum(results) != results.get("sha256"):
        raise UserError(f"{folder / RESULTS_FILE} was changed: its checksum is another")
    for cell in (*results["cells"], *results["trials"]):
        for name, wanted in cell.get("sha256", {}).items():
            path = folder / place_of(cell) / (PREDICTIONS if name == "predictions" else name)
            try:
                found = _unpacked(path) if name == "predictions" else path.read_bytes()
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error}") from None
            if sha256(found) != wanted:
                raise UserError(f"{path} was changed: its checksum is another")
    # What can be computed must come out again: whoever changes a number can change a checksum.
    for cell in results["cells"]:
        facts = _facts(folder / place_of(cell)) if cell["status"] == COMPLETE else {}
        for name, value in facts.items():
            if cell[name] != value:
                raise UserError(f"{folder / RESULTS_FILE}: {name} of {named(cell)} is not its own")
    _check_rates(results, folder)
    if not _agree(json.loads(json.dumps(tables_of(results, folder))), results["tables"]):
        raise UserError(f"{folder / RESULTS_FILE}: its tables do not follow from the predictions")


def _check_rates(results: Mapping[str, Any], folder: Path) -> None:
    """Raises UserError where a learning rate is not the one that the trials choose."""
    rates, under, seed = results["learning_rates"], results["conditions"][0], results["seeds"][0]
    chosen: dict[str, float | None] = {}
    for network in results["networks"]:
        name = network["name"]
        trials = [Cell(name, under["name"], rate, seed) for rate in rates]
        found = [[cell.learning_rate, validation_score(folder, cell)] for cell in trials]
        if network["is_ablation"] or len(rates) == 1:
            found, chosen[name] = [], chosen.get(results["first"], rates[0])
        elif network["learning_rate"] is None:
            chosen[name] = None
        else:
            # The first of the best; a trial that failed has no score.
            chosen[name] = max(found, key=lambda one: -1 if one[1] is None else one[1])[0]
        own = {
            c["learning_rate"]
            for c in results["cells"]
            if (c["name"], c["status"]) == (name, COMPLETE)
        }
        if (
            network["validation_f1"] != found
            or network["learning_rate"] != chosen[name]
            or own - {chosen[name]}
        ):
            raise UserError(
                f"{folder / RESULTS_FILE}: the learning rate of {name} does not follow from its "
                f"trials"
            )


def _agree(found: Any, told: Any) -> bool:
    """Whether two tables are the same but for what another processor rounds."""
    if isinstance(found, dict) and isinstance(told, dict):
        return found.keys() == told.keys() and all(_agree(found[key], told[key]) for key in found)
    if isinstance(found, list) and isinstance(told, list):
        return len(found) == len(told) and all(map(_agree, found, told))
    if isinstance(found, float) and isinstance(told, float):
        return math.isclose(found, told, rel_tol=1e-9, abs_tol=1e-12)
    return found == told


def named(cell: Mapping[str, Any]) -> str:
    """A cell as `--cell` takes it: NETWORK/CONDITION/SEED."""
    return f"{cell['name']}/{cell['condition']}/{cell['seed']}"


def tables_of(results: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """All that the page shows, computed from the predictions in the folder of results.

    Returns:
      `comparison`: by condition, `compare_networks` of the networks against the first; `ablations`:
      the same of the ablations; `leakage`: by network and metric, protocol 'augmented' minus
      'patient'. What has no complete cell is left out.
    """
    conditions = [condition["name"] for condition in results["conditions"]]
    networks = [one["name"] for one in results["networks"] if not one["is_ablation"]]
    ablations = [one["name"] for one in results["networks"] if one["is_ablation"]]
    comparison = {name: _compared(results, folder, name, networks) for name in conditions}
    ablated = [results["first"], *ablations] if ablations else []
    return {
        "comparison": {name: found for name, found in comparison.items() if found},
        "ablations": _compared(results, folder, conditions[0], ablated),
        "leakage": _leakage(results, folder, networks),
    }


def _compared(
    results: Mapping[str, Any], folder: Path, condition: str, names: Sequence[str]
) -> dict[str, Any] | None:
    networks = [
        Network(name, tuple(runs))
        for name in names
        if (runs := _runs(results, folder, condition, name))
    ]
    if not networks:
        return None
    pairs = [(networks[0], other) for other in networks[1:] if networks[0].name == results["first"]]
    found = compare_networks(networks, pairs)
    for network, scores in zip(networks, found["networks"], strict=True):
        # Where the folder of results lies does not belong to the results.
        scores.pop("runs")
        by_seed = one_vs_rest(network.confusions.sum(1))["f1"]
        scores["class_f1"] = {
            label: [defined(value) for value in by_seed[:, n]]
            for n, label in enumerate(found["classes"])
        }
    return found


def _runs(results: Mapping[str, Any], folder: Path, condition: str, name: str) -> list[Run]:
    return [
        read_run(folder / place_of(cell), Path("test"), RECORDS)
        for cell in results["cells"]
        if cell["status"] == COMPLETE and (cell["name"], cell["condition"]) == (name, condition)
    ]


def _leakage(
    results: Mapping[str, Any], folder: Path, names: Sequence[str]
) -> dict[str, dict[str, dict[str, float | None]]]:
    """How much higher a network scores where copies of test images were trained on.

    The two test splits share patients, not images: intervals draw patients, and one who is in both
    splits counts equally often in both.
    """
    by_protocol = {one["protocol"]: one["name"] for one in reversed(results["conditions"])}
    if not {AUGMENTED, PATIENT} <= set(by_protocol):
        return {}
    found = {}
    for name in names:
        augmented, patient = (
            [run.predictions for run in _runs(results, folder, by_protocol[protocol], name)]
            for protocol in (AUGMENTED, PATIENT)
        )
        if not augmented or not patient:
            continue
        everyone = np.unique(np.concatenate([p.patients for p in (*augmented, *patient)]))
        ours, theirs = (
            np.stack([_confusions_of(one, everyone) for one in predictions])
            for predictions in (augmented, patient)
        )
        found[name] = {
            metric: {part: defined(getattr(d, part)) for part in ("value", "low", "high")}
            for metric, d in compare_metrics(ours, theirs).items()
        }
    return found


def _confusions_of(predictions: Any, everyone: np.ndarray) -> np.ndarray:
    """Confusion matrices of all patients, those who are not in the split all zero."""
    matrices = np.zeros((len(everyone), *[len(predictions.classes)] * 2), np.int64)
    own = np.unique(predictions.patients)
    matrices[np.searchsorted(everyone, own)] = predictions.confusions()
    return matrices
