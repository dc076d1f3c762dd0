"""A picture of some studies: both views, dark is many counts, then the same under each map.

In: explained images of each study, with their lesions. Out: a matplotlib Figure; `write_png` writes
it.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from dscint_jax.explain.lesions import LesionRecord
from dscint_jax.explain.maps import METHODS, Explained
from tfds_builder.commandline.files import write_whole

# A cache that cannot be written is worth no warning: matplotlib works all the same.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

import matplotlib as mpl  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

PANELS_A_ROW = 12
OUTLINE = "#0b6e99"
STYLE = mpl.RcParams({"font.family": "sans-serif", "font.size": 7})


@dataclasses.dataclass(frozen=True)
class Panel:
    """One view of a study.

    Attributes:
      title: which view, and what the network reads in it; three lines.
      pixels: normalised counts.
      heat: the maps over it, in [0, 1], by their names.
      lesions: which pixels have a lesion.
    """

    title: str
    pixels: Float[np.ndarray, "height width"]
    heat: dict[str, Float[np.ndarray, "height width"]]
    lesions: Bool[np.ndarray, "height width"]


Study = tuple[str, list[Panel]]
"""The true class, and the views that are there."""


def panels_of(item: Explained, record: LesionRecord | None, classes: Sequence[str]) -> list[Panel]:
    """The views that an image, or a study, has; without a record there is no lesion."""
    views, height, width = item.views.shape
    lesions = np.zeros(item.views.shape, bool)
    if record is not None:
        side = record.mask.shape[-1] // width
        lesions = record.mask.reshape(views, height, side, width, side).max((2, 4)) > 0
    names = (item.view,) if views == 1 else ("anterior", "posterior")
    there = item.views.any((1, 2))
    predicted = int(item.probabilities.argmax())
    read = classes[predicted].replace("_", " ")
    sure = f"p = {item.probabilities[predicted]:.2f}"
    heat = item.heat
    return [
        Panel(
            title=f"{names[n]}, read as\n{read}\n{sure}",
            pixels=item.views[n],
            heat={method: values[n] for method, values in heat.items()},
            lesions=lesions[n],
        )
        for n in np.flatnonzero(there if there.any() else ~there)
    ]


def montage(studies: Sequence[Study]) -> Figure:
    """Draws studies: of each its views with outlined lesions, then the same under each map."""
    methods = list(studies[0][1][0].heat)
    views = max(len(panels) for _, panels in studies)
    wide = views * (1 + len(methods))
    columns = max(min(len(studies), PANELS_A_ROW // wide), 1)
    rows = -(-len(studies) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.05 * wide * columns, 4.7 * rows), layout="constrained")
        grid = figure.add_gridspec(rows, columns)
        for cell, (label, panels) in enumerate(studies):
            axes = grid[cell].subgridspec(1, wide).subplots(squeeze=False)[0]
            for place in axes:
                place.set_axis_off()
            for n, panel in enumerate(panels):
                _draw(axes[n], panel, None)
                # Always four lines, so that all panels have the same height.
                axes[n].set_title(f"{'' if n else label}\n{panel.title}", fontsize=6, loc="left")
                for m, method in enumerate(methods, start=1):
                    place = axes[m * views + n]
                    _draw(place, panel, method)
                    place.set_title(f"\n{METHODS[method]}\n\n", fontsize=6, loc="left")
    return figure


def write_png(figure: Figure, path: Path) -> None:
    """Writes a figure as a file that is there whole or not at all."""
    write_whole(
        path,
        lambda part: figure.savefig(part, format="png", dpi=150, metadata={"Software": None}),
    )


def _draw(axes: Axes, panel: Panel, method: str | None) -> None:
    limit = np.percentile(panel.pixels, 99.5)
    axes.imshow(panel.pixels, cmap="Greys", vmin=0, vmax=limit, aspect="equal")
    if method:
        heat = panel.heat[method]
        # Where the map says nothing, the scan is seen as it is.
        axes.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.75 * heat, aspect="equal")
    elif panel.lesions.any():
        axes.contour(panel.lesions.astype(float), levels=[0.5], colors=OUTLINE, linewidths=0.6)
