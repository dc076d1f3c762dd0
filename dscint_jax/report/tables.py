"""The tables of the report."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

from dscint_jax.baselines.linear_baseline import Baseline
from dscint_jax.metrics.scores import (
    METRIC_NAMES,
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


def metrics_table(
    result: dict[str, Any], own: dict[str, Any] | None, baseline: Baseline | None
) -> str:
    """The five metrics; `own` are those of the data set trained on, beside another one's."""
    columns = {"": [TITLES[name] for name in METRIC_NAMES]}
    trained_on = "data set trained on, test"
    if own and own["step"] != result["step"]:
        trained_on += f", at step {own['step']}"
    for title, source in ((result["data_set"] or "this run", result), (trained_on, own)):
        if source:
            interval = "95 % interval" + (" there" if source is own else "")
            bounds = source["intervals"]["values"]
            columns[html.escape(title)] = [in_words(source[name]) for name in METRIC_NAMES]
            columns[interval] = [interval_in_words(bounds[name]) for name in METRIC_NAMES]
    if baseline:
        columns["linear baseline"] = [in_words(baseline.scores[n], 3) for n in METRIC_NAMES]
    if has_published_classes(result):
        columns["published Dscint"] = [f"{PUBLISHED_DSCINT[name]:.4f}" for name in METRIC_NAMES]
    return html_table(tuple(columns), list(zip(*columns.values(), strict=True)), strong=1)


def class_table(result: dict[str, Any], noun: str) -> str:
    """Precision, recall, specificity and F-1 of each class."""
    rows = [
        (
            html.escape(label.replace("_", " ")),
            *(in_words(values[name], 3) for name in ("precision", "recall", "specificity", "f1")),
            str(values["support"]),
        )
        for label, values in ((c, result["per_class"][c]) for c in result["classes"])
    ]
    return html_table(("class", "precision", "recall", "specificity", "F-1", noun), rows)


def html_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], strong: int | None = None
) -> str:
    """An HTML table; cells are HTML already; column `strong` is set in bold."""
    header = "".join(f"<th>{cell}</th>" for cell in head)
    header = f"<thead><tr>{header}</tr></thead>" if any(head) else ""
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="strong">{cell}</td>' if i == strong else f"<td>{cell}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table>{header}<tbody>{body}</tbody></table>"
