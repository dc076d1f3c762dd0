"""An HTML page a study, which needs nothing beside it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from dscint_jax.explain.maps import Explained
from dscint_jax.predict.networks import Said
from dscint_jax.report.gallery import pictures, shape_of, viewer
from dscint_jax.report.html import render
from dscint_jax.report.tables import plain
from tfds_builder.manifest import VIEWS

TEMPLATE = Path(__file__).parent / "template"
PICTURE_ROWS = 1024


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is said of a study.

    Attributes:
      label: the class of the largest probability.
      confidence: that probability.
      least: the confidence below which nothing is said.
    """

    label: str
    confidence: float
    least: float

    @property
    def abstains(self) -> bool:
        """Whether nothing is said."""
        return self.confidence < self.least

    @property
    def text(self) -> str:
        """In words."""
        if self.abstains:
            return (
                f"No answer: the largest probability, {self.confidence:.2f} for "
                f"{plain(self.label)}, is below {self.least:g}."
            )
        return f"Read as {plain(self.label)}, probability {self.confidence:.2f}."


def study_page(
    name: str,
    said: Said,
    verdict: Verdict,
    classes: Sequence[str],
    explained: Sequence[Explained],
    *,
    clip: float,
    calibrated: bool,
    remarks: Sequence[str],
    facts: Mapping[str, str],
) -> str:
    """The page of one study.

    Args:
      name: its heading.
      said: what the networks say.
      verdict: what comes of it.
      classes: names, in the order of the probabilities.
      explained: each of its records, with maps.
      clip: upper limit of a normalised pixel.
      calibrated: whether the study's probabilities are at temperatures that were chosen.
      remarks: what has to be looked at.
      facts: what else is known, by its name.
    """
    scans = scans_of(said)
    item = pictures(explained, [None] * len(scans), clip, rows=PICTURE_ROWS, scans=scans)
    item["views"] = [view for record in said.records for view in _views(record)]
    shape = shape_of(scans[0].shape[-2:], PICTURE_ROWS)
    head = [
        _record_name(record, classes, raw)
        for record, raw in zip(said.records, said.raw, strict=True)
    ]
    rows = [
        (plain(label), f"{said.probabilities[n]:.3f}", *(f"{raw[n]:.3f}" for raw in said.raw))
        for n, label in enumerate(classes)
    ]
    return render(
        TEMPLATE / "study.html",
        scripts=("viewer",),
        name=name,
        verdict=verdict.text,
        remarks=remarks,
        display=viewer(clip, shape, item["maps"]),
        item=item,
        views=head,
        rows=rows,
        calibration=", at the temperature that was chosen on validation images"
        if calibrated
        else "; they are not calibrated",
        facts=list(facts.items()),
    )


def scans_of(said: Said) -> list[Float[np.ndarray, "view height width"]]:
    """The views of every record as they were taken, as large as they are: sqrt(counts / scale)."""
    scans = []
    for record in said.records:
        counts = record["image"][..., 0].astype(np.float32)
        views = counts.reshape(-1, *counts.shape[-2:])
        scans.append(np.sqrt(views / np.atleast_1d(record["scale"])[:, None, None]))
    return scans


def _views(record: Mapping[str, object]) -> list[str]:
    return [str(record["view"])] if "view" in record else [*VIEWS]


def _record_name(record: Mapping[str, object], classes: Sequence[str], raw: np.ndarray) -> str:
    return f"{' and '.join(_views(record))}: {plain(classes[int(raw.argmax())])}"
