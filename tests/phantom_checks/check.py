"""Compares synthetic patients with clinical scans, statistic by statistic.

In: what was measured of the patients. Out: whether all is inside, as a table for the screen,
check.csv and check.png. The clinical figures are those of `calibration.json`.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.phantom_checks.measure import STATISTICS, Measured
from tfds_builder import tables
from tfds_builder.commandline.files import write_text, write_whole

VIEWS = ("anterior", "posterior")
PERCENTILES = (5.0, 50.0, 95.0)
WIDEST = 6.0
"""The cohort may spread at most so many times as far as the few clinical scans do."""
MOST_TOO_WIDE = 0.05
"""Share of the statistics that may spread more than that."""
KNOWN_RANGES = {"noise": (0.96, 1.11), "background": (0.04, 0.11)}
"""Statistics of which clinical scans give the range alone."""
HOT_SPOT_RANGES = {"rib": (2.5, 2.5), "pelvis": (2.0, 3.0), "humerus": (7.0, 17.0)}
"""Contrast of lesions of clinical scans with the other side."""

INK, GRID, ACCENT, SECOND = "#1d2733", "#d9dee5", "#0b6e99", "#c2541b"
STYLE = {
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}

Three = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Row:
    """One statistic of one view in one bin.

    `real` is minimum, median and maximum of the clinical scans, the median NaN where the range
    alone is known; `cohort` the 5th, 50th and 95th percentile of the patients. A row that is not
    `judged` is for information.
    """

    view: str
    statistic: str
    bin: str
    real: Three
    cohort: Three
    judged: bool = True

    @property
    def inside(self) -> bool:
        """The real median lies in the cohort's percentiles, or its median in the known range."""
        low, median, high = self.real
        if math.isnan(median):
            return low <= self.cohort[1] <= high
        return self.cohort[0] <= median <= self.cohort[2]

    @property
    def width(self) -> float:
        """Spread of the cohort over that of the clinical scans; NaN where that tells nothing."""
        spread = self.real[2] - self.real[0]
        told = self.judged and spread > 0
        return (self.cohort[2] - self.cohort[0]) / spread if told else math.nan

    @property
    def verdict(self) -> str:
        """`inside`, `outside`, `too wide` or, where nothing is judged, `information`."""
        if not self.judged:
            return "information"
        if not self.inside:
            return "outside"
        return "too wide" if self.width > WIDEST else "inside"

    @property
    def passed(self) -> bool:
        """Whether there is nothing to mend."""
        return self.verdict in ("inside", "information")


def holds(rows: Sequence[Row]) -> bool:
    """Whether every clinical median is inside, and all but MOST_TOO_WIDE of the rows narrow enough.

    A few may be wider, because four scans tell little of how far patients spread: their medians of
    smoothed counts happen to lie within 2 % of each other.
    """
    judged = [row for row in rows if row.judged]
    wide = sum(row.verdict == "too wide" for row in judged)
    return all(row.inside for row in judged) and wide <= MOST_TOO_WIDE * len(judged)


def clinical() -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Figures of clinical scans by view, statistic and `min`, `median` or `max`, each (bins,)."""
    content = json.loads(Path(__file__).with_name("calibration.json").read_text())
    return {
        view: {
            name: {key: np.atleast_1d(np.asarray(value, float)) for key, value in figures.items()}
            for name, figures in content[view].items()
        }
        for view in VIEWS
    }


def compare(measured: Sequence[Measured]) -> list[Row]:
    """All rows: every statistic in every bin of both views, then the hot spots."""
    real = clinical()
    rows = []
    for number, view in enumerate(VIEWS):
        for name, statistic in STATISTICS.items():
            cohort = np.percentile([m.views[number][name] for m in measured], PERCENTILES, axis=0)
            for place, label in enumerate(statistic.bins):
                figures = _figures(real[view], name, place)
                rows.append(Row(view, name, label, figures, _three(cohort[:, place])))
        rows += _hot_spot_rows(measured, number)
    return rows


def _figures(real: dict[str, dict[str, np.ndarray]], name: str, place: int) -> Three:
    if name in KNOWN_RANGES:
        low, high = KNOWN_RANGES[name]
        return low, math.nan, high
    return _three(real[name][key][place] for key in ("min", "median", "max"))


def _three(values: Iterable[float]) -> Three:
    low, middle, high = map(float, values)
    return low, middle, high


def _hot_spot_rows(measured: Sequence[Measured], number: int) -> Iterator[Row]:
    for name, (low, high) in HOT_SPOT_RANGES.items():
        values = [value for m in measured for value in m.hot_spots[number][name]]
        if values:
            cohort = _three(np.percentile(values, PERCENTILES))
            yield Row(VIEWS[number], "hot spot", name, (low, math.nan, high), cohort, judged=False)


def title(row: Row) -> str:
    """What the row's statistic is called in print."""
    return STATISTICS[row.statistic].title if row.statistic in STATISTICS else row.statistic


def summary(rows: Sequence[Row]) -> str:
    """One line: how many rows are inside, and how wide the widest is."""
    judged = [row for row in rows if row.judged]
    inside = sum(row.inside for row in judged)
    widths = [row.width for row in judged if not math.isnan(row.width)]
    too_wide = sum(width > WIDEST for width in widths)
    wide = f", {too_wide} above the {WIDEST:g} allowed" if too_wide else ""
    return f"{inside} of {len(judged)} inside, widest {max(widths):.1f} times{wide}"


def table(rows: Sequence[Row]) -> str:
    """The rows as text, what fails marked, and the summary as the last line."""
    lines = [
        f"{'':35}{'clinical scans':^27}{'cohort':^27}",
        _line("view", "statistic", "bin", "min", "median", "max", "5 %", "50 %", "95 %", "width"),
    ]
    for row in rows:
        figures = (_short(value) for value in (*row.real, *row.cohort, row.width))
        verdict = row.verdict if row.passed else f"{row.verdict.upper()} <<<"
        lines.append(f"{_line(row.view, title(row), row.bin, *figures)}  {verdict}")
    return "\n".join([*lines, summary(rows)])


def _line(view: str, name: str, label: str, *others: str) -> str:
    return f"{view:10}{name:18}{label:>7}{''.join(f'{text:>9}' for text in others)}"


def _short(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def write(out: Path, rows: Sequence[Row], heading: str) -> None:
    """Writes check.csv and check.png into a folder, which is made where it is missing."""
    write_text(out / "check.csv", csv_text(rows))
    # What is laid out only when it is drawn takes its style then.
    with mpl.rc_context(STYLE):
        drawn = figure(rows, heading)
        metadata = {"Software": None}
        write_whole(
            out / "check.png",
            lambda part: drawn.savefig(part, format="png", dpi=150, metadata=metadata),
        )


def csv_text(rows: Sequence[Row]) -> str:
    """The rows as a table with a header; what is not known is left empty."""
    columns = (
        "view", "statistic", "bin", "real_min", "real_median", "real_max",
        "cohort_p5", "cohort_p50", "cohort_p95", "width", "verdict",
    )  # fmt: skip
    lines = []
    for row in rows:
        figures = (*row.real, *row.cohort, row.width)
        written = ["" if math.isnan(value) else f"{value:.6g}" for value in figures]
        lines.append([row.view, row.statistic, row.bin, *written, row.verdict])
    return tables.csv_text(columns, lines)


def figure(rows: Sequence[Row], heading: str) -> Figure:
    """A line of panels for each view: profiles along the body, quantiles, single figures."""
    drawn = Figure(figsize=(15.0, 6.8), layout="constrained")
    drawn.suptitle(heading, x=0.01, ha="left", fontsize=11)
    panels = drawn.subplots(len(VIEWS), 5, width_ratios=(3, 3, 3, 2, 2))
    for line, view in zip(panels, VIEWS, strict=True):
        chosen = [row for row in rows if row.view == view and row.judged]
        for axes, name in zip(line, _PROFILES, strict=False):
            _draw_profile(axes, [row for row in chosen if row.statistic == name])
        others = [row for row in chosen if row.statistic not in _PROFILES]
        quantiles = [row for row in others if row.bin]
        _draw_shares(line[3], quantiles, [row.bin for row in quantiles], title(quantiles[0]))
        single = [row for row in others if not row.bin]
        _draw_shares(line[4], single, [title(row) for row in single], "single figures")
        line[0].set_ylabel(f"{view}\n", fontsize=11)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower left", ncols=len(labels), frameon=False)
    return drawn


_PROFILES = (
    "longitudinal_fraction_20_bins_head_to_feet",
    "body_width_mm_20_bins",
    "midline_fraction_20_bins",
)


def _draw_profile(axes: Axes, rows: Sequence[Row]) -> None:
    """One statistic over the bands: the cohort as a band, the clinical scans as bars."""
    place = np.arange(len(rows))
    low, middle, high = np.array([row.cohort for row in rows]).T
    axes.fill_between(place, low, high, color=ACCENT, alpha=0.25, lw=0, label="cohort, 5 to 95 %")
    axes.plot(place, middle, color=ACCENT, lw=1.2, label="cohort, median")
    for passed, color, label in (
        (True, INK, "clinical scans: range and median"),
        (False, SECOND, "the same, outside the cohort or the cohort too wide"),
    ):
        real = np.array([row.real if row.passed == passed else (np.nan,) * 3 for row in rows]).T
        axes.vlines(place, real[0], real[2], color=color, lw=1.4)
        axes.plot(place, real[1], "o", color=color, ms=3.2, label=label)
    axes.set_xticks(place[4::5], [row.bin for row in rows[4::5]])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("band, head to toes")
    axes.set_title(title(rows[0]))


def _draw_shares(axes: Axes, rows: Sequence[Row], names: Sequence[str], heading: str) -> None:
    """Figures over their clinical median or, where it is not known, the middle of the range."""
    for place, row in enumerate(rows):
        unit = (row.real[0] + row.real[2]) / 2 if math.isnan(row.real[1]) else row.real[1]
        low, middle, high = np.array(row.cohort) / unit
        color = INK if row.passed else SECOND
        axes.barh(place, high - low, left=low, height=0.5, color=ACCENT, alpha=0.25, lw=0)
        axes.vlines(middle, place - 0.25, place + 0.25, color=ACCENT, lw=1.2)
        axes.hlines(place, row.real[0] / unit, row.real[2] / unit, color=color, lw=1.4)
        axes.plot(row.real[1] / unit, place, "o", color=color, ms=3.2)
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("over the clinical middle")
    axes.set_title(heading)
