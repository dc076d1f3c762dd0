"""The tables of the report: rows of text, which the page shows and files beside it repeat.

In: what metrics.json holds. Out: `Table`s, and each as Markdown, CSV and LaTeX.
"""

import csv
import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dscint_jax.baselines.result import Baseline
from dscint_jax.explain.lesions import GROUPS
from dscint_jax.explain.scores import BRIGHTEST, ENERGY, POINTING
from dscint_jax.explain.summary import MAP_TITLES, verdicts
from dscint_jax.metrics.calibration import CONFIDENCE, fewest_read
from dscint_jax.metrics.scores import (
    CLASS_METRICS,
    METRIC_NAMES,
    NOT_DEFINED,
    PUBLISHED_DSCINT,
    has_published_classes,
    in_words,
    interval_in_words,
)

TITLES = {
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "specificity": "Specificity",
    "f1": "F-1",
}

FACTS = {
    "view": "view",
    "sex": "sex",
    "age_band": "age",
    "manufacturer": "maker",
    "site_key": "site",
}
"""What the groups of metrics.json are called in tables; others keep their name."""

AIMS = {"specificity_95": "specificity", "sensitivity_95": "sensitivity"}
"""What the operating points of metrics.json hold at 0.95 at least."""

LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "≥": r"$\geq$",
        "−": r"$-$",
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    }
)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
      name: of its files, without an ending.
      title: what it shows.
      head: names of the columns.
      rows: as many cells each; the first names the row.
      note: what the reader has to know of it.
      strong: the column that is set in bold; None: none is.
    """

    name: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    strong: int | None = None


def markdown_text(table: Table) -> str:
    """The table in Markdown, with its title and its note."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    sides = ["---", *["---:"] * (len(table.head) - 1)]
    lines = [table.title, "", line(table.head), line(sides), *map(line, table.rows)]
    return "\n".join([*lines, *(["", table.note] if table.note else [])]) + "\n"


def csv_text(table: Table) -> str:
    """The table as CSV, its head first."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.head, *table.rows])
    return text.getvalue()


def latex_text(table: Table) -> str:
    """The table in LaTeX, for the package booktabs."""

    def line(cells: Sequence[str]) -> str:
        return "  " + " & ".join(cell.translate(LATEX) for cell in cells) + r" \\"

    return "\n".join(
        [
            rf"% {table.title}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
            r"  \toprule",
            line(table.head),
            r"  \midrule",
            *map(line, table.rows),
            r"  \bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


FORMATS = {"md": markdown_text, "csv": csv_text, "tex": latex_text}
"""What files a table has beside the page, by their ending."""


def plain(name: str) -> str:
    """A class or a fact as a reader writes it."""
    return name.replace("_", " ")


def with_interval(value: float | None, bounds: Sequence[float] | None) -> str:
    """A value, and its 95 % interval in brackets."""
    text = in_words(value, 3)
    return text if value is None or bounds is None else f"{text} ({interval_in_words(bounds)})"


def _cell(found: Mapping[str, Any], name: str) -> str:
    """A value whose interval stands beside it."""
    return with_interval(found[name], found[f"{name}_interval"])


def _there_and_here(point: Mapping[str, Any], *names: str) -> Iterator[str]:
    """What a point that was chosen on validation does there, and here with intervals."""
    for name in names:
        yield in_words(point["validation"][name], 3)
        yield _cell(point, name)


def metrics_table(
    result: Mapping[str, Any],
    own: Mapping[str, Any] | None,
    baseline: Baseline | None,
    external: Mapping[str, Mapping[str, Any]] | None = None,
) -> Table:
    """The five metrics.

    Args:
      result: a metrics.json.
      own: that of the data set trained on, beside another one's.
      baseline: on the same images.
      external: those of other data sets, by their names.
    """
    columns = [("metric", [TITLES[name] for name in METRIC_NAMES])]

    def add(title: str, interval: str, source: Mapping[str, Any]) -> None:
        bounds = source["intervals"]["values"]
        columns.append((title, [in_words(source[name]) for name in METRIC_NAMES]))
        columns.append((interval, [interval_in_words(bounds[name]) for name in METRIC_NAMES]))

    add(result["data_set"] or "this run", "95 % interval", result)
    if own:
        at = f", at step {own['step']}" if own["step"] != result["step"] else ""
        add(f"data set trained on, test{at}", "95 % interval there", own)
    for name, other in (external or {}).items():
        at = f", at step {other['step']}" if other["step"] != result["step"] else ""
        add(f"{name}, {other['split']}{at}", f"95 % interval, {name}", other)
    if baseline:
        values = [in_words(baseline.scores[n], 3) for n in METRIC_NAMES]
        columns.append(("linear baseline", values))
    if has_published_classes(result):
        values = [f"{PUBLISHED_DSCINT[name]:.4f}" for name in METRIC_NAMES]
        columns.append(("published Dscint", values))
    head, cells = zip(*columns, strict=True)
    return Table("metrics", "The five metrics", head, tuple(zip(*cells, strict=True)), strong=1)


def class_table(result: Mapping[str, Any], noun: str) -> Table:
    """Precision, recall, specificity and F-1 of each class, with intervals."""
    rows = tuple(
        (
            plain(label),
            str(values["support"]),
            *(_cell(values, name) for name in CLASS_METRICS),
        )
        for label, values in ((c, result["per_class"][c]) for c in result["classes"])
    )
    head = ("class", noun, *(TITLES[name] for name in CLASS_METRICS))
    return Table("classes", "Each class against all others", head, rows)


def group_table(result: Mapping[str, Any], noun: str) -> Table:
    """The five metrics of every group, and of whole studies and patients."""
    rows = [_group(f"all {noun}", result)]
    rows += [_group(f"whole {unit}", result[unit]) for unit in ("studies", "patients")]
    known = [fact for fact in FACTS if fact in result["groups"]]
    others = [fact for fact in result["groups"] if fact not in FACTS]
    rows += [
        _group(f"{FACTS.get(fact, plain(fact))}: {value}", found)
        for fact in (*known, *others)
        for value, found in result["groups"][fact].items()
    ]
    head = ("group", "number", "patients", *(TITLES[name] for name in METRIC_NAMES))
    left_out = {unit: result[unit]["left_out"] for unit in ("studies", "patients")}
    return Table(
        "groups",
        "Each view, sex, age band, maker and site; whole studies and patients",
        head,
        tuple(rows),
        note=(
            f"A study or patient has the class of the largest mean probability of its {noun}. "
            f"Left out are {left_out['studies']} studies and {left_out['patients']} patients whose "
            f"{noun} have several true classes. A mean runs over the classes that the group has. "
            "Sites are pseudonyms."
        ),
    )


def _group(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    intervals = found["intervals"]["values"]
    return (
        name,
        str(found["support"]),
        str(found["intervals"]["patients"]),
        *(with_interval(found[n], intervals[n]) for n in METRIC_NAMES),
    )


def confusion_table(result: Mapping[str, Any]) -> Table:
    """Counts by true and predicted class."""
    names = [plain(name) for name in result["classes"]]
    rows = tuple(
        (name, *map(str, counts))
        for name, counts in zip(names, result["confusion_matrix"], strict=True)
    )
    head = ("true \\ predicted", *names)
    return Table("confusion", "Rows are true classes, columns predicted ones", head, rows)


def area_table(result: Mapping[str, Any]) -> Table:
    """AUROC and average precision of each class."""
    rows = tuple(
        (
            plain(label),
            in_words(found["prevalence"], 3),
            _cell(found, "auroc"),
            _cell(found, "average_precision"),
        )
        for label, found in ((c, result["areas"][c]) for c in result["classes"])
    )
    return Table(
        "areas",
        "Areas under the curves",
        ("class", "prevalence", "AUROC", "average precision"),
        rows,
        note="A guess has an AUROC of 0.5 and an average precision equal to the prevalence.",
    )


def point_table(result: Mapping[str, Any], noun: str) -> Table | None:
    """Operating points chosen on validation; None where there are none."""
    points = result["operating_points"] or {}
    rows = tuple(
        _point(label, held, points[label][aim])
        for label in result["classes"]
        for aim, held in AIMS.items()
        if aim in points.get(label, ())
    )
    if not rows:
        return None
    return Table(
        "operating_points",
        f"Operating points chosen on the validation {noun}, and what they do here",
        (
            "class",
            "chosen for",
            "threshold",
            "sensitivity on validation",
            "sensitivity here",
            "specificity on validation",
            "specificity here",
            "drift",
        ),
        rows,
        note=(
            "Drift: what the point was chosen for, here less that on validation. Where the "
            "threshold is none, no probability is high enough."
        ),
    )


def _point(label: str, held: str, point: Mapping[str, Any]) -> tuple[str, ...]:
    here, there = point[held], point["validation"][held]
    drift = None if here is None or there is None else here - there
    return (
        plain(label),
        f"{held} of 0.95",
        "none" if point["threshold"] is None else in_words(point["threshold"], 3),
        *_there_and_here(point, "sensitivity", "specificity"),
        NOT_DEFINED if drift is None else f"{drift:+.3f}".replace("-", "−"),
    )


def calibration_table(result: Mapping[str, Any], noun: str) -> Table:
    """Calibration error and Brier score, before and after temperature."""
    found = result["calibration"]
    rows = [_calibration("as the network says", 1.0, found)]
    if found["after"]:
        rows.append(_calibration("after temperature", found["temperature"], found["after"]))
    fitted = f"The temperature is fitted on the validation {noun}. " if found["after"] else ""
    return Table(
        "calibration",
        "Calibration before and after temperature" if found["after"] else "Calibration",
        ("probabilities", "temperature", "calibration error", "Brier score"),
        tuple(rows),
        note=(
            f"Expected calibration error of the predicted class over {found['bins']} bins; Brier "
            f"score summed over classes, 0 to 2. {fitted}Of few {noun} the calibration "
            "error is too high, and so is its interval."
        ),
    )


def _calibration(name: str, temperature: float, found: Mapping[str, Any]) -> tuple[str, ...]:
    return name, in_words(temperature, 3), _cell(found, "ece"), _cell(found, "brier")


def abstention_table(result: Mapping[str, Any], noun: str) -> Table:
    """Accuracy where the network reads the surest only."""
    rows = tuple(
        tuple(in_words(point[name], 3) for name in ("coverage", "confidence", "accuracy"))
        for point in result["abstention"]
    )
    return Table(
        "abstention",
        f"Accuracy on the {noun} that the network is surest of",
        (f"share of the {noun} that is read", "least confidence", "accuracy"),
        rows,
    )


def answers_table(result: Mapping[str, Any]) -> Table | None:
    """Studies answered at the thresholds chosen on validation; None where there are none."""
    points = result["answers"]
    if not points:
        return None
    rows = tuple(
        (
            f"{point['accuracy_target']:g}",
            "none" if point["least_confidence"] is None else in_words(point["least_confidence"], 3),
            *_there_and_here(point, "coverage", "accuracy"),
            *(in_words(point["coverage_by_class"][c], 3) for c in result["classes"]),
        )
        for point in points
    )
    fewest = ", ".join(
        f"{fewest_read(point['accuracy_target'])} for {point['accuracy_target']:g}"
        for point in points
    )
    return Table(
        "answers",
        "Studies answered where a least confidence is chosen on the validation studies",
        (
            "accuracy of answers, at least",
            "least confidence",
            "answered on validation",
            "answered here",
            "right of these on validation",
            "right of these here",
            *(f"answered of {plain(label)}" for label in result["classes"]),
        ),
        rows,
        note=(
            "Probabilities of whole studies, at the temperature. The least confidence is the "
            "smallest that "
            f"{points[0]['validation']['studies']} validation studies show to keep the accuracy "
            f"with {CONFIDENCE:.0%} confidence; where it is none, they do not: it takes as many "
            f"answers without an error as {fewest}. Here: {points[0]['studies']} studies."
        ),
    )


def pointing_table(found: Mapping[str, Any], noun: str) -> Table:
    """How well each map of an explanations.json points at lesions."""
    every = found["scores"]["all"]
    rows = []
    for name, title in _maps(every).items():
        # A baseline has neither.
        more = every[POINTING].get(f"{name} - {BRIGHTEST}")
        random = found["random_weights"].get(name)
        rows.append(
            (
                title,
                *(_mean(every[score][name]) for score in (POINTING, ENERGY)),
                _mean(more) if more else "",
                with_interval(random["rank_correlation"], random["interval"]) if random else "",
            )
        )
    note = (
        f"{every['images']} {noun} of {every['patients']} patients with lesions, maps of the true "
        f"class. Pointing: how often the highest point of the map lies on a lesion, or within "
        f"{found['tolerance_mm']:g} mm; energy: the share of the map's sum in lesions. With random "
        f"weights: rank correlation with the same map of a network that learned nothing; near 1, "
        f"the map shows the image and not what was learned. {' '.join(verdicts(every[POINTING]))}"
    )
    head = ("map", "pointing", "energy", f"pointing minus {BRIGHTEST}", "with random weights")
    return Table("pointing", "Maps against lesion masks", head, tuple(rows), note)


def pointing_group_table(found: Mapping[str, Any], noun: str) -> Table:
    """Pointing by the lesions' site, size and contrast, and by class, view and reading."""
    maps = _maps(found["scores"]["all"])
    order = {name: place for place, (_, name) in enumerate(GROUPS)}
    rows = [
        (
            f"{kind}: {plain(name)}",
            str(group["images"]),
            *(in_words(group[POINTING][each]["mean"], 3) for each in maps),
        )
        for kind in ("site", "size", "contrast", "class", "view", "reading")
        for name in sorted(found["scores"][kind], key=lambda name: (order.get(name, 0), name))
        for group in [found["scores"][kind][name]]
        if group["images"]
    ]
    note = (
        "Of lesions at one site, or of one size or contrast, the others count as none. The paper "
        "found thyroid carcinoma, whose site is fixed, easier than metastases, whose sites are not."
    )
    head = ("lesions", noun, *maps.values())
    return Table("pointing_groups", "Pointing by lesion and by image", head, tuple(rows), note)


def _maps(every: Mapping[str, Any]) -> dict[str, str]:
    """Names and titles of the maps, the methods first."""
    return {name: title for name, title in MAP_TITLES.items() if name in every[POINTING]}


def _mean(found: Mapping[str, Any]) -> str:
    return with_interval(found["mean"], found["interval"])
