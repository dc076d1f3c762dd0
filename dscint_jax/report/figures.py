"""The report's figures: confusion matrix, curves, learning curves.

In: an evaluation's numbers. Out: SVG elements for the page, which `svg_file` makes files of. Text
and axes have the colour of the text around them, so that a figure reads on a light and on a dark
page. The same data give the same bytes.
"""

import io
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Int
from sklearn.metrics import precision_recall_curve, roc_curve

from dscint_jax.metrics.calibration import abstention_curve
from dscint_jax.metrics.predictions import Predictions
from dscint_jax.report.tables import plain

# A cache that cannot be written is worth no warning: matplotlib works all the same.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

import matplotlib as mpl  # noqa: E402
from cycler import cycler  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402

INK = "#010203"
"""Becomes the colour of the text; no other colour of the figures is near it."""

COLOURS = (
    "#1f8fc4",
    "#d9622b",
    "#2f9e6b",
    "#a06cc9",
    "#c99a1e",
    "#d0568e",
    "#6f8f2f",
    "#7a8699",
)
"""Seen on white and on black alike."""

MOST_CLASSES = 8
"""With more, a legend would cover the curves."""

FEW_POINTS = 20
"""Of a curve are marked: a single one would not be seen."""

PANEL = (3.75, 3.3)
"""Inches: as wide as a phone."""

STYLE = mpl.RcParams(
    {
        "font.family": "sans-serif",
        "font.size": 9,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "grid.color": INK,
        "grid.alpha": 0.15,
        "grid.linewidth": 0.6,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        # Ids in SVG files are random otherwise.
        "svg.hashsalt": "dscint",
        "svg.fonttype": "none",
    }
)


def drawn_figures(
    result: Mapping[str, Any],
    predictions: Predictions,
    lines: Sequence[Mapping[str, Any]],
    noun: str,
) -> dict[str, str]:
    """Every figure of the page by its name, as an SVG element.

    Args:
      result: a metrics.json.
      predictions: the same evaluation's.
      lines: of the training's metrics.
      noun: what the split holds.
    """
    with mpl.rc_context(STYLE):
        drawn = {
            "confusion": (
                confusion_figure(np.array(result["confusion_matrix"]), result["classes"]),
                "confusion matrix, counts and shares of the true class",
            ),
            "roc": (
                roc_figure(predictions, result["operating_points"]),
                "ROC curve of each class against all others",
            ),
            "precision_recall": (
                precision_recall_figure(predictions),
                "precision-recall curve of each class against all others",
            ),
            "reliability": (
                reliability_figure(result["calibration"]),
                "accuracy against confidence, before and after temperature",
            ),
            "abstention": (
                abstention_figure(predictions, noun),
                "accuracy against the share that is read",
            ),
            **{
                f"learning_{name}": (
                    learning_figure(lines, name, result["step"]),
                    f"{name} of training and validation by step",
                )
                for name in ("loss", "accuracy")
            },
        }
        return {name: as_svg(figure, name, words) for name, (figure, words) in drawn.items()}


def confusion_figure(
    confusion: Int[np.ndarray, "true predicted"], classes: Sequence[str]
) -> Figure:
    """Counts and row percentages; stronger is more of the true class."""
    size = 0.7 + 0.8 * max(len(classes), 4)
    figure = Figure(figsize=(size + 0.7, size), layout="constrained")
    axes = figure.subplots()
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    for (row, column), count in np.ndenumerate(confusion):
        corner = (column - 0.5, row - 0.5)
        alpha = 0.6 * share[row, column]
        axes.add_patch(Rectangle(corner, 1, 1, color=COLOURS[0], alpha=alpha, lw=0))
        text = f"{count}\n{share[row, column]:.0%}"
        axes.text(column, row, text, ha="center", va="center")
    names = [name.replace("_", "\n") for name in classes]
    axes.set_xticks(range(len(classes)), names)
    axes.set_yticks(range(len(classes)), names)
    axes.set_xlim(-0.5, len(classes) - 0.5)
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    return figure


def roc_figure(predictions: Predictions, points: Mapping[str, Any] | None) -> Figure:
    """ROC curves of each class against all others; `points` are metrics.json's operating points."""
    figure, axes = _unit_panel("1 − specificity", "sensitivity")
    axes.plot([0, 1], [0, 1], color=INK, lw=0.7, ls=":")
    for i, label in _defined_classes(predictions):
        curve = roc_curve(predictions.labels == i, predictions.probabilities[:, i])
        (line,) = axes.plot(curve[0], curve[1], lw=1.4, label=plain(label))
        for point in (points or {}).get(label, {}).values():
            if point["specificity"] is not None and point["sensitivity"] is not None:
                place = 1 - point["specificity"], point["sensitivity"]
                axes.plot(*place, marker="o", ms=4, color=line.get_color())
    _legend(axes, "lower right")
    return figure


def precision_recall_figure(predictions: Predictions) -> Figure:
    """Precision against sensitivity of each class against all others."""
    figure, axes = _unit_panel("sensitivity (recall)", "precision")
    for i, label in _defined_classes(predictions):
        positive, scores = predictions.labels == i, predictions.probabilities[:, i]
        precision, recall, _ = precision_recall_curve(positive, scores, drop_intermediate=True)
        axes.step(recall, precision, where="post", lw=1.4, label=plain(label))
    _legend(axes, "best")
    return figure


def reliability_figure(calibration: Mapping[str, Any]) -> Figure:
    """Accuracy against confidence, before and after temperature; larger is more images."""
    figure, axes = _unit_panel("mean confidence", "accuracy")
    axes.plot([0, 1], [0, 1], color=INK, lw=0.7, ls=":")
    for found, label, marker in (
        (calibration, "as the network says", "o"),
        (calibration["after"], "after temperature", "s"),
    ):
        if found:
            curve = found["confidence"], found["accuracy"]
            (line,) = axes.plot(*curve, lw=1.2, label=label)
            sizes = 8 + 90 * np.array(found["images"]) / max(sum(found["images"]), 1)
            axes.scatter(*curve, s=sizes, color=line.get_color(), marker=marker)
    _legend(axes, "upper left")
    return figure


def abstention_figure(predictions: Predictions, noun: str) -> Figure:
    """Accuracy against the share that is read, the surest first."""
    figure, axes = _unit_panel(f"share of the {noun} that is read", "accuracy")
    curve = abstention_curve(predictions.probabilities, predictions.labels)
    marker = "o" if len(curve.coverage) <= FEW_POINTS else None
    axes.step(curve.coverage, curve.accuracy, where="post", lw=1.4, marker=marker, ms=3)
    axes.set_ylim(min(0.5, float(curve.accuracy.min())) - 0.03, 1.03)
    return figure


def learning_figure(lines: Sequence[Mapping[str, Any]], name: str, used_step: int) -> Figure:
    """'loss' or 'accuracy' of training batches and of the validation images, by step."""
    figure, axes = _panel("step", name)
    for field, label, style in (
        (name, "training batches", {"lw": 1, "alpha": 0.85}),
        (f"validation_{name}", "validation", {"lw": 1.4, "marker": "o", "ms": 3.5}),
    ):
        points = [(line["step"], line[field]) for line in lines if field in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.axvline(used_step, color=INK, lw=0.8, ls=":", label=f"used: step {used_step}")
    if name == "loss":
        axes.set_ylim(bottom=0)
    else:
        axes.set_ylim(top=1.0)
    _legend(axes, "best")
    return figure


def _panel(across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=PANEL, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    return figure, axes


def _unit_panel(across: str, up: str) -> tuple[Figure, Axes]:
    figure, axes = _panel(across, up)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    return figure, axes


def _defined_classes(predictions: Predictions) -> list[tuple[int, str]]:
    """Those that some images have and others have not: the others have no curves."""
    counts = np.bincount(predictions.labels, minlength=len(predictions.classes))
    return [
        (i, label)
        for i, label in enumerate(predictions.classes)
        if 0 < counts[i] < len(predictions)
    ]


def _legend(axes: Axes, place: Literal["best", "lower right", "upper left"]) -> None:
    handles, _ = axes.get_legend_handles_labels()
    if 0 < len(handles) <= MOST_CLASSES:
        axes.legend(loc=place)


def as_svg(figure: Figure, name: str, alternative: str) -> str:
    """The figure as an SVG element of a page.

    Args:
      figure: drawn in STYLE, which is still set.
      name: sets its ids apart from those of the page's other figures.
      alternative: what it shows, for who does not see it.
    """
    text = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(text, format="svg", metadata=metadata, transparent=True)
    svg = text.getvalue()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{alternative}" ', 1)


def svg_file(svg: str) -> str:
    """An SVG element as a file of its own, dark on light pages and light on dark ones."""
    style = (
        "<style>svg { color: #1d2733 } "
        "@media (prefers-color-scheme: dark) { svg { color: #e3e8ee } }</style>"
    )
    return '<?xml version="1.0" encoding="utf-8"?>\n' + re.sub(
        r"(<svg[^>]*>)", lambda tag: f"{tag[1]}\n {style}", svg, count=1
    )
