"""The report's figures: confusion matrix, learning curves, scintigrams with attention.

Each function returns a matplotlib Figure; `as_svg` and `as_png` turn one into an HTML element that
needs no other file. The same data give the same bytes.
"""

import base64
import io
import logging
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from dscint_jax.explain.attention import Explained

# A cache that cannot be written is worth no warning: matplotlib works all the same.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

import matplotlib as mpl  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

PANELS_A_ROW = 12
"""Scintigrams beside each other in a figure: a page is about as wide as 12 bodies."""

GAP = 0.12
"""Between the panels of two examples, in widths of a scintigram."""

INK, GRID, ACCENT, SECOND = "#1d2733", "#d9dee5", "#0b6e99", "#c2541b"

STYLE = mpl.RcParams(
    {
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        # Ids in SVG files are random otherwise.
        "svg.hashsalt": "dscint",
        "svg.fonttype": "none",
    }
)


def confusion_figure(
    confusion: Int[np.ndarray, "true predicted"], classes: Sequence[str]
) -> Figure:
    """Counts and row percentages; darker is more of the true class."""
    with mpl.rc_context(STYLE):
        size = 0.7 + 0.8 * max(len(classes), 4)
        figure = Figure(figsize=(size + 0.7, size), layout="constrained")
        axes = figure.subplots()
        share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(confusion):
            axes.text(
                column,
                row,
                f"{count}\n{share[row, column]:.0%}",
                ha="center",
                va="center",
                color="white" if share[row, column] > 0.55 else INK,
            )
        names = [name.replace("_", "\n") for name in classes]
        axes.set_xticks(range(len(classes)), names)
        axes.set_yticks(range(len(classes)), names)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    return figure


def learning_figure(lines: Sequence[dict[str, Any]], used_step: int) -> Figure:
    """Loss and accuracy of training batches and of the validation images, by step."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 2.9), layout="constrained")
        for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            for field, label, style in (
                (name, "training batches", {"color": ACCENT, "alpha": 0.8, "lw": 1.2}),
                (f"validation_{name}", "validation", {"color": SECOND, "marker": "o", "ms": 3.5}),
            ):
                points = [(line["step"], line[field]) for line in lines if field in line]
                if points:
                    axes.plot(*zip(*points, strict=True), label=label, **style)
            axes.axvline(used_step, color=INK, lw=0.8, ls=":", label=f"used: step {used_step}")
            axes.set_xlabel("step")
            axes.set_title(name, loc="left")
            axes.grid(color=GRID, lw=0.6)
            axes.set_axisbelow(True)
        figure.axes[0].set_ylim(bottom=0)
        figure.axes[1].set_ylim(top=1.0)
        figure.axes[1].legend(frameon=False, loc="lower right")
    return figure


def scintigram_figure(explained: Sequence[Explained], classes: Sequence[str]) -> Figure:
    """Each scintigram beside itself under the network's attention; dark is many counts.

    Of a study, both views stand beside both under attention.
    """
    with mpl.rc_context(STYLE):
        attended = any(e.attention is not None for e in explained)
        panels = max(len(e.views) for e in explained) * (2 if attended else 1)
        columns = min(len(explained), PANELS_A_ROW // panels)
        rows = -(-len(explained) // columns)
        figure = Figure(figsize=(1.02 * panels * columns, 4.6 * rows), layout="constrained")
        grid = figure.add_gridspec(rows, columns)
        for cell, item in enumerate(explained):
            # The last, narrow column stays empty: it keeps neighbours apart.
            places = grid[cell].subgridspec(1, panels + 1, width_ratios=(*[1] * panels, GAP))
            axes = [figure.add_subplot(places[n]) for n in range(panels)]
            _draw_views(axes, item)
            axes[0].set_title(_caption(item, classes), fontsize=7, loc="left")
    return figure


def _draw_views(axes: Sequence[Axes], item: Explained) -> None:
    """The views from the left, then, in what panels are left, the same under attention."""
    count = len(item.views)
    for n, panel in enumerate(axes):
        view = item.views[n % count]
        limit = np.percentile(view, 99.5)
        panel.imshow(view, cmap="Greys", vmin=0, vmax=limit, aspect="equal")
        panel.set_axis_off()
    if item.attention is not None:
        # One range over both views, because their shares are of one whole.
        span = np.ptp(item.attention)
        heat = (item.attention - item.attention.min()) / (span if span > 0 else 1)
        for panel, plane in zip(axes[count:], heat, strict=True):
            panel.imshow(plane, cmap="inferno", alpha=0.55, vmin=0, vmax=1, aspect="equal")


def _caption(item: Explained, classes: Sequence[str]) -> str:
    predicted = int(item.probabilities.argmax())
    # Always three lines, so that all panels have the same height.
    verdict = "" if predicted == item.label else f"read as {_short(classes[predicted])}"
    sure = item.probabilities[predicted]
    view = "both views" if item.view == "both" else item.view
    return f"{_short(classes[item.label])}\n{verdict or 'read as such'}\n{view}, p = {sure:.2f}"


def _short(name: str) -> str:
    return name.replace("_", " ")


def as_svg(figure: Figure) -> str:
    """The figure as an inline SVG element."""
    text = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return re.sub(r"\s*<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)


def as_png(figure: Figure, alternative: str) -> str:
    """The figure as an inline PNG image, for figures that are mostly pixels."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=170, metadata={"Software": None})
    encoded = base64.b64encode(data.getvalue()).decode()
    return f'<img alt="{alternative}" src="data:image/png;base64,{encoded}">'
