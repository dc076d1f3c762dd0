"""Checklists of reporting guidelines and the model card, filled from a run as far as it tells.

In: the files of checklists/, each a list of [number, item, name of a fact or null], and the facts
of a run. Out: a table each. What the run does not tell is 'not reported', for authors to write.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dscint_jax.evaluate.evaluate import leakage_line
from dscint_jax.metrics.scores import METRIC_NAMES, in_words
from dscint_jax.report.data_flow import NOT_REPORTED, DataFlow
from dscint_jax.report.reported import Reported
from dscint_jax.report.tables import TITLES, Table, plain, with_interval
from tfds_builder.commandline.files import read_json

FOLDER = Path(__file__).parent / "checklists"
ORDER = ("model_card", "claim_2024", "tripod_ai", "relaince", "metrics")


def checklist_tables(facts: Mapping[str, str | None]) -> list[Table]:
    """The model card first, then every checklist."""
    return [_filled(read_json(FOLDER / f"{name}.json"), facts) for name in ORDER]


def _filled(checklist: Mapping[str, Any], facts: Mapping[str, str | None]) -> Table:
    rows = tuple(
        (number, item, (facts[fact] if fact else None) or NOT_REPORTED)
        for number, item, fact in checklist["items"]
    )
    told = sum(row[2] != NOT_REPORTED for row in rows)
    return Table(
        checklist["name"],
        f"{checklist['title']}: {told} of {len(rows)} items told by the run",
        ("item", "what is asked for", "what the run tells"),
        rows,
        note=f"{checklist['title']}, {checklist['version']}; items are paraphrased. "
        f"Source: {checklist['source']}.",
    )


def facts_of(reported: Reported, *, with_maps: bool) -> dict[str, str | None]:
    """What a run tells, by the names that the checklists use; None is what it does not tell.

    With maps: the page's gallery shows where the network looks.
    """
    return {
        **_of_data(reported),
        **_of_training(reported),
        **_of_results(reported),
        "explanations": "maps of where the network looks in the gallery" if with_maps else None,
    }


def _of_data(reported: Reported) -> dict[str, str | None]:
    result, flow, noun = reported.result, reported.flow, reported.noun
    config = reported.network.config
    classes = ", ".join(map(plain, result["classes"]))
    splits = [
        f"{name}: {held['images']} images"
        + (f" of {n} patients" if (n := held.get("patients")) else "")
        for name, held in flow.splits.items()
    ]
    sites = [name for name in result["groups"].get("site_key", {}) if name != "unknown"]
    makers, spacings = (flow.cohort.get(n) for n in ("manufacturers", "pixel_spacings_mm"))
    acquired = [
        f"{title} {', '.join(counts)}"
        for title, counts in (("makers:", makers), ("pixel spacing, mm:", spacings))
        if counts
    ]
    return {
        "technology": (
            f"deep learning: a {config.model} network on planar whole-body bone scintigrams"
        ),
        "intended_use": "research; it is no medical device",
        "goal": f"classification of {noun} as one of {classes}",
        "outcome": f"class of the {noun} as the data set has it: {classes}",
        "predictors": "the pixels alone",
        "sources": f"data set {result['dataset_fingerprint'][:16]}"
        + (f"; makers: {', '.join(makers)}" if makers else ""),
        "centres": f"{len(sites)} sites in this split" if sites else None,
        "preprocessing": (
            f"counts summed in blocks of {config.data.pool}x{config.data.pool} pixels, then "
            f"min(sqrt(counts / scale), {config.data.clip:g})"
        ),
        "deidentification": (
            "records hold keyed pseudonyms of patients, studies and sites, and ages in decades; no "
            "name, date or UID"
        ),
        "missing": None
        if flow.left_out is None
        else f"{flow.left_out} images left out, such as those without an opposite view",
        "acquisition": "; ".join(acquired) or None,
        "partitions": f"by {config.protocol} protocol: {'; '.join(splits)}",
        "disjoint": leakage_line(result),
        "cohort": "; ".join(
            f"whole data set, {title} {', '.join(f'{k} {v}' for k, v in flow.cohort[name].items())}"
            for name, title in (("sexes", "sex:"), ("age_bands", "age:"))
            if name in flow.cohort
        )
        or None,
        "flow": _flow(flow),
        "imbalance": f"sampling {config.data.sampling}, class weights {config.class_weights}",
    }


def _flow(flow: DataFlow) -> str | None:
    if flow.rows is None or flow.refused is None:
        return None
    reasons = "; ".join(f"{n} rows refused: {reason}" for reason, n in flow.refused.items())
    return (
        f"{flow.rows} rows offered; {reasons or 'no row refused'}; "
        f"{flow.total('images')} images taken"
    )


def _of_training(reported: Reported) -> dict[str, str | None]:
    network, attempts = reported.network, reported.attempts
    config, last = network.config, attempts[-1]
    start = [attempt["init_from"]["file"] for attempt in attempts if attempt.get("init_from")]
    commit = last["git"]
    return {
        "model": f"{config.model}, {network.parameters:,} parameters; config.json has its options",
        "software": ", ".join(f"{name} {version}" for name, version in last["versions"].items()),
        "initialisation": f"weights of {start[-1]}" if start else f"random, seed {config.seed}",
        "training": (
            f"{config.steps} steps of {last.get('batch_size') or config.batch_size} "
            f"{reported.noun}; {config.optimizer.name}, learning rate "
            f"{config.optimizer.learning_rate:g}, {config.optimizer.schedule}; loss {config.loss}; "
            "augmentation as in config.json"
        ),
        "checkpoint": (
            f"step {network.step} of {config.steps}; unless told otherwise, that of the best "
            "validation F-1"
        ),
        "ensemble": "none: one network",
        "protocol": f"config.json and provenance.json of the run, {len(attempts)} attempt(s)",
        "availability": "dscint-jax, Apache-2.0"
        + ("" if commit == "unknown" else f", commit {commit[:12]}"),
        "segmentation": "does not apply: nothing is segmented",
        "features": "does not apply: the network finds its features itself",
        "guidelines": "CLAIM 2024, TRIPOD+AI and RELAINCE, filled as far as the run tells",
    }


def _of_results(reported: Reported) -> dict[str, str | None]:
    result, baseline, noun = reported.result, reported.baseline, reported.noun
    intervals, found = result["intervals"], result["calibration"]
    scores = ", ".join(
        f"{TITLES[n]} {with_interval(result[n], intervals['values'][n])}" for n in METRIC_NAMES
    )
    wrong = result["support"] - sum(row[i] for i, row in enumerate(result["confusion_matrix"]))
    areas = ", ".join(
        f"{plain(label)} {with_interval(area['auroc'], area['auroc_interval'])}"
        for label, area in ((c, result["areas"][c]) for c in result["classes"])
    )
    groups = [name for name, values in result["groups"].items() if len(values) > 1]
    others = "; ".join(
        f"{name}: accuracy {in_words(other['accuracy'], 3)} on {other['support']} {noun}"
        for name, other in reported.external.items()
    )
    on_other = result["data_set"] is not None
    calibrated = f"calibration error {with_interval(found['ece'], found['ece_interval'])}"
    if found["after"]:
        calibrated += f", after temperature {in_words(found['after']['ece'], 3)}"
    return {
        "measures": (
            "accuracy, macro precision, recall, specificity, F-1; AUROC, average precision; "
            "calibration error, Brier score"
        ),
        "uncertainty": f"{intervals['method']}; 95 % intervals",
        "robustness": f"metrics by {', '.join(map(plain, groups))}" if groups else None,
        "internal": None
        if on_other
        else f"{result['split']}: {result['support']} {noun} of {intervals['patients']} patients",
        "external": f"{result['data_set']}: this page" if on_other else others or None,
        "differences": "compared with the data set trained on, at the top" if on_other else None,
        "performance": scores,
        "diagnostic": f"AUROC: {areas}",
        "errors": f"{wrong} of {result['support']} {noun} are wrong; the gallery shows them",
        "calibration": calibrated,
        "output": "a probability for each class (softmax); the largest is predicted"
        + ("; thresholds chosen on validation" if result["operating_points"] else ""),
        "baseline": None
        if baseline is None
        else f"logistic regression on {baseline.side[0]}x{baseline.side[1]} pixels: accuracy "
        f"{in_words(baseline.scores['accuracy'], 3)}",
    }
