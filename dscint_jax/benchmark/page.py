"""The page of a benchmark in Markdown, made from results.json alone; the paper's layout first."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dscint_jax.benchmark.results import COMPLETE, FAILED, OPEN, named
from dscint_jax.metrics.scores import (
    METRIC_NAMES,
    PUBLISHED_DSCINT,
    has_published_classes,
    in_words,
    interval_in_words,
    p_in_words,
    spread_in_words,
)
from dscint_jax.report.tables import TITLES, Table, markdown_text, plain

FIXED, NONFIXED = ("thyroid_carcinoma",), ("metastasis", "arthritis")
"""The published classes whose lesions lie in fixed places, and elsewhere."""

OWN_WORDS = {"dscint": "Dscint", "alexnet": "AlexNet", "inception_v4": "Inception-v4"}


def titled(name: str) -> str:
    """A network, or an ablation, as a reader writes it."""
    for family, title in (("vgg", "VGG-"), ("resnet", "ResNet-"), ("densenet", "DenseNet-")):
        if name.startswith(family):
            return title + name.removeprefix(family).replace("_", " ")
    return OWN_WORDS.get(name, plain(name))


def page_text(results: Mapping[str, Any]) -> str:
    """The page."""
    parts = ["# Benchmark", _lead(results), *map(markdown_text, tables(results))]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def tables(results: Mapping[str, Any]) -> Iterator[Table]:
    """The tables of the page that have rows."""
    found = results["tables"]["comparison"]
    names = [condition["name"] for condition in results["conditions"]]
    comparison = {name: found[name] for name in names if name in found}
    for condition, found in comparison.items():
        yield scores_table(condition, found)
    for condition, found in comparison.items():
        if found["pairs"]:
            first = titled(results["first"])
            title = f"{first} minus the others, {plain(condition)}"
            note = f"{first} is number {_rank(found, results['first'])} by mean accuracy. "
            yield _pairs_table(f"pairs_{condition}", title, found["pairs"], note)
    if leakage := results["tables"]["leakage"]:
        yield Table(
            "leakage",
            "Leakage: protocol augmented minus patient, with 95 % intervals",
            ("network", *map(TITLES.__getitem__, METRIC_NAMES)),
            tuple(
                (titled(one["name"]), *(_difference(leakage[one["name"]][m]) for m in METRIC_NAMES))
                for one in results["networks"]
                if one["name"] in leakage
            ),
            note="Same networks, budget and seeds. Patients are drawn, those of both test splits "
            "together.",
        )
    if (ablations := results["tables"]["ablations"]) and ablations["pairs"]:
        yield scores_table("ablations", ablations)
        first = titled(results["first"])
        title = f"{first} minus {first} with something left out"
        yield _pairs_table("pairs_ablations", title, ablations["pairs"])
    for condition, found in comparison.items():
        yield _class_table(condition, found)
    yield _cost_table(results)
    failed = [cell for cell in results["cells"] if cell["status"] == FAILED]
    if failed:
        rows = tuple((named(cell), cell["reason"]) for cell in failed)
        yield Table("failed", "Cells that failed", ("cell", "reason"), rows)


def scores_table(condition: str, found: Mapping[str, Any]) -> Table:
    """The five metrics of every network: mean and standard deviation over the seeds."""
    rows = [
        (
            titled(network["name"]),
            *(spread_in_words(network["metrics"][name]) for name in METRIC_NAMES),
            str(len(network["seeds"])),
        )
        for network in found["networks"]
    ]
    if has_published_classes(found):
        published = (in_words(PUBLISHED_DSCINT[name]) for name in METRIC_NAMES)
        rows.append(("published Dscint, other data", *published, ""))
    intervals = "; ".join(
        f"{titled(network['name'])} {interval_in_words(network['metrics']['accuracy']['interval'])}"
        for network in found["networks"]
    )
    return Table(
        condition,
        f"{plain(condition).capitalize()}: {found['support']} test images of "
        f"{found['patients']} patients, mean ± SD over seeds",
        ("network", *map(TITLES.__getitem__, METRIC_NAMES), "seeds"),
        tuple(rows),
        note=f"95 % intervals of the mean accuracy, patients drawn: {intervals}.",
    )


def _rank(found: Mapping[str, Any], name: str) -> str:
    """A network's place among all of a table, such as '2 of 6'."""
    means = {one["name"]: one["metrics"]["accuracy"]["mean"] for one in found["networks"]}
    return f"{1 + sum(mean > means[name] for mean in means.values())} of {len(means)}"


def _pairs_table(
    name: str, title: str, pairs: Sequence[Mapping[str, Any]], lead: str = ""
) -> Table:
    rows = tuple(
        (
            titled(pair["second"]),
            *(
                f"{_difference(found)}, p {p_in_words(found['p_holm'])}"
                for found in (pair["metrics"][name] for name in ("accuracy", "f1"))
            ),
        )
        for pair in pairs
    )
    head = ("minus", *(f"{TITLES[name]}, 95 % interval, p (Holm)" for name in ("accuracy", "f1")))
    note = (
        f"{lead}Paired by patient: bootstrap intervals, permutation tests, corrected over all "
        "metrics and pairs of the table (Holm). p needs as many seeds of both."
    )
    return Table(name, title, head, rows, note=note)


def _class_table(condition: str, found: Mapping[str, Any]) -> Table:
    def mean(network: Mapping[str, Any], labels: Sequence[str]) -> str:
        by_seed = [network["class_f1"][label] for label in labels]
        values = [statistics.fmean(seed) for seed in zip(*by_seed, strict=True) if None not in seed]
        return spread_in_words(_spread_of(values))

    kinds = [(plain(label), [label]) for label in found["classes"]]
    if {*FIXED, *NONFIXED} <= set(found["classes"]):
        kinds.append(("nonfixed places (mean)", [*NONFIXED]))
    rows = tuple(
        (titled(network["name"]), *(mean(network, labels) for _, labels in kinds))
        for network in found["networks"]
    )
    note = (
        "Lesions of thyroid carcinoma lie in a fixed place, the neck; those of metastasis and "
        "arthritis do not."
        if len(kinds) > len(found["classes"])
        else ""
    )
    title = f"F-1 of each class, {plain(condition)}"
    head = ("network", *(name for name, _ in kinds))
    return Table(f"classes_{condition}", title, head, rows, note=note)


def _cost_table(results: Mapping[str, Any]) -> Table:
    rows = []
    for network in results["networks"]:
        name = network["name"]
        own = [c for c in results["cells"] if c["name"] == name and c["status"] == COMPLETE]
        speeds = [c["images_per_second"] for c in own if c["images_per_second"]]
        rate = network["learning_rate"]
        missing = OPEN if rate is None else FAILED
        rows.append(
            (
                titled(name),
                f"{network['parameters'] / 1e6:.2f}" if network["parameters"] else "",
                f"{network['flops'] / 2e9:.3f}" if network["flops"] else "",
                f"{statistics.median(speeds):.0f}" if speeds else "",
                "" if rate is None else f"{rate:g}",
                ", ".join(
                    f"{one:g}: {missing if f1 is None else in_words(f1, 3)}"
                    for one, f1 in network["validation_f1"]
                ),
            )
        )
    head = ("network", "parameters, millions", "multiply-adds, 10⁹", "images/s in training")
    return Table(
        "cost",
        "What each network costs, and how its learning rate was chosen",
        (*head, "learning rate", "F-1 on the validation split by learning rate"),
        tuple(rows),
        note="Multiply-adds of one image, forward. Ablations have the first network's learning "
        f"rate. {_machines(results)}",
    )


def _lead(results: Mapping[str, Any]) -> str:
    base, data = results["base"], results["base"]["data"]
    states = [cell["status"] for cell in results["cells"]]
    conditions = ", ".join(
        f"{plain(one['name'])} (protocol {one['protocol']})" for one in results["conditions"]
    )
    fingerprints = sorted(
        {cell["dataset_fingerprint"][:12] for cell in results["cells"] if "git" in cell}
    )
    return (
        f"{states.count(COMPLETE)} of {len(states)} cells are complete"
        f"{f', {states.count(FAILED)} failed' * (FAILED in states)}. Every network is trained for "
        f"{base['steps']} steps of {base['batch_size']} images, whose counts are summed over "
        f"{data['pool']}x{data['pool']} pixels. Conditions: {conditions}. Seeds: "
        f"{', '.join(map(str, results['seeds']))}. Data set: "
        f"{', '.join(fingerprints) or 'none yet'}.\n\n"
        "`python -m dscint_jax.benchmark --verify results.json --cell NETWORK/CONDITION/SEED "
        "--data_dir DIR` runs one cell again, such as "
        f"`{named(results['cells'][0])}`.\n"
    )


def _machines(results: Mapping[str, Any]) -> str:
    found = set()
    for cell in results["cells"]:
        if cell["status"] == COMPLETE:
            stack = cell["stack"]
            device = stack["devices"][0]
            here = f"{stack['processor']}, {stack['cores']} cores"
            on = here if device == "cpu" else f"{stack['device_count']} {device} beside {here}"
            found.add(f"{on}, jaxlib {stack['versions']['jaxlib']}")
    return f"Measured on: {'; '.join(sorted(found))}." if found else ""


def _spread_of(values: Sequence[float]) -> dict[str, float | None]:
    return {
        "mean": statistics.fmean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
    }


def _difference(values: Mapping[str, Any]) -> str:
    if values["value"] is None:
        return in_words(None)
    text = f"{values['value']:+.4f}"
    if values["low"] is None:
        return text
    return f"{text} ({values['low']:+.3f} to {values['high']:+.3f})"
