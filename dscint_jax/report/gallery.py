"""The gallery of the report: the studies of a split as small pictures, with maps to lay over them.

In: predictions, and for some of the images what `dscint_jax.explain` makes of them. Out: plain
values that the page's script paints from.
"""

import base64
import dataclasses
import io
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from dscint_jax.explain.lesions import LesionRecord
from dscint_jax.explain.maps import METHODS, Explained
from dscint_jax.metrics.predictions import MIXED, Predictions
from dscint_jax.report.tables import FACTS, plain

LESIONS = "true lesions"
"""The map of the lesion masks."""

PICTURE_ROWS, MAP_ROWS = 256, 128
"""The most rows of a picture, and of a map that is laid over it."""

QUALITY = 90
"""Of WebP: what it takes away is less than the noise of the counts."""

MOST_BYTES = 3_600_000
"""Of all pictures: the page stays under 5 MB."""

MOST_CASES = 1000
"""Studies that are listed; more would be no help."""

_VIEWS = {"anterior": 0, "posterior": 1}
"""The places of the views beside each other."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A study, or of copies one copy of it.

    Attributes:
      images: indices of its images, the anterior one first.
      label: true class; MIXED where its images have several.
      predicted: the class of the largest mean probability.
      probabilities: means over its images.
    """

    images: tuple[int, ...]
    label: str
    predicted: str
    probabilities: Float[np.ndarray, " classes"]

    @property
    def right(self) -> bool:
        """Whether the predicted class is the true one."""
        return self.label == self.predicted

    @property
    def confidence(self) -> float:
        """The probability of the predicted class."""
        return float(self.probabilities.max())


def cases_of(predictions: Predictions) -> list[Case]:
    """The studies of a split, in the order of their first images."""
    groups: dict[tuple[str, str], list[int]] = {}
    facts = predictions.facts
    for i, (study, image) in enumerate(zip(facts["study_key"], facts["image_id"], strict=True)):
        copy = str(image).partition("#")[2]
        groups.setdefault((str(study), copy), []).append(i)
    return [_case(predictions, images) for images in groups.values()]


def _case(predictions: Predictions, images: list[int]) -> Case:
    labels = {predictions.classes[predictions.labels[i]] for i in images}
    means = predictions.probabilities[images].mean(0)
    return Case(
        images=tuple(sorted(images, key=lambda i: _VIEWS.get(_view(predictions, i), len(_VIEWS)))),
        label=labels.pop() if len(labels) == 1 else MIXED,
        predicted=predictions.classes[int(means.argmax())],
        probabilities=means,
    )


def _view(predictions: Predictions, image: int) -> str:
    return str(predictions.facts["view"][image]) if "view" in predictions.facts else "unknown"


def by_instruction(cases: Sequence[Case]) -> list[int]:
    """Indices of cases, the most instructive first: errors, the surest first, then doubtful hits.

    The surest hit of each class comes before all others, so that every class is there.
    """
    surest: dict[str, int] = {}
    for i, case in enumerate(cases):
        best = surest.get(case.label)
        if case.right and (best is None or case.confidence > cases[best].confidence):
            surest[case.label] = i
    first = sorted(surest.values())

    def rank(i: int) -> tuple[bool, float]:
        case = cases[i]
        return case.right, case.confidence if case.right else -case.confidence

    return first + sorted(set(range(len(cases))) - set(first), key=rank)


def gallery(
    predictions: Predictions,
    explain: Callable[[np.ndarray], Iterator[Explained]],
    lesions: Callable[[np.ndarray], Sequence[LesionRecord | None]],
    *,
    clip: float,
    most_bytes: int = MOST_BYTES,
) -> dict[str, Any]:
    """What the page's script needs of every study that is shown.

    Args:
      predictions: of the split.
      explain: explains images by their indices, as they are asked for, perhaps a batch ahead.
      lesions: reads the records of images by their indices.
      clip: upper limit of a normalised pixel, which becomes 255.
      most_bytes: what all pictures may take; the least instructive studies are left out.

    Returns:
      'cases' in the order of the split, 'of' how many studies it has, and what they have in common.
    """
    cases = cases_of(predictions)
    order = by_instruction(cases)[:MOST_CASES]
    explained = explain(np.array([i for number in order for i in cases[number].images], int))
    shown: dict[int, dict[str, Any]] = {}
    size, shape = 0, (1, 1)
    for number in order:
        images = cases[number].images
        own = list(itertools.islice(explained, len(images)))
        painted = pictures(own, lesions(np.array(images)), clip)
        size += sum(len(text) for text in (painted["picture"], *painted["maps"].values()))
        if size > most_bytes:
            break
        shape = shape_of(own[0].views.shape[-2:])
        shown[number] = _described(predictions, cases[number], own) | painted
    return {
        **viewer(clip, shape, {name for case in shown.values() for name in case["maps"]}),
        "classes": [plain(name) for name in predictions.classes],
        "of": len(cases),
        "cases": [shown[number] for number in sorted(shown)],
    }


def viewer(clip: float, shape: tuple[int, int], maps: Collection[str]) -> dict[str, Any]:
    """What viewer.js needs of all pictures: their largest value, a view's height and width, maps.

    Args:
      clip: upper limit of a normalised pixel, which is 255 in a picture.
      shape: rows and columns of a view in a picture.
      maps: names of those that any picture has.
    """
    # Red to yellow: neither is a shade of the scan, on which dark is many counts.
    colours = np.asarray(mpl.colormaps["autumn"](np.arange(256), bytes=True))[:, :3]
    return {
        "clip": clip,
        "height": shape[0],
        "width": shape[1],
        "colours": colours.tobytes().hex(),
        "maps": [name for name in (*METHODS.values(), LESIONS) if name in maps],
    }


def _described(
    predictions: Predictions, case: Case, explained: Sequence[Explained]
) -> dict[str, Any]:
    first = case.images[0]
    facts = {
        title: str(predictions.facts[name][first])
        for name, title in FACTS.items()
        if name != "view" and name in predictions.facts and predictions.facts[name][first]
    }
    return {
        "id": str(predictions.facts["study_key"][first])[:12],
        "label": plain(case.label),
        "predicted": plain(case.predicted),
        "right": case.right,
        "probabilities": [round(float(p), 4) for p in case.probabilities],
        # Of a pair, the prediction is the study's.
        "views": [*_VIEWS] * len(case.images)
        if len(explained[0].views) > 1
        else [
            f"{_view(predictions, i)}: {plain(predictions.classes[predictions.predicted[i]])}"
            for i in case.images
        ],
        "facts": facts,
    }


def pictures(
    explained: Sequence[Explained],
    records: Sequence[LesionRecord | None],
    clip: float,
    *,
    rows: int = PICTURE_ROWS,
    scans: Sequence[Float[np.ndarray, "view height width"]] | None = None,
) -> dict[str, Any]:
    """The views beside each other as one 'picture', and every one of 'maps' alike.

    Args:
      explained: the images of a study, or its pair of views.
      records: the lesions of each; None where they are not known.
      clip: upper limit of a normalised pixel, which becomes 255.
      rows: the most of the picture.
      scans: what is shown of each image; None: its views, as the network sees them.
    """
    scans = [own.views for own in explained] if scans is None else scans
    # The root of the mean square: of square roots of counts, that of the mean counts.
    pixels = [np.sqrt(_reduced(view**2, rows)) for scan in scans for view in scan]
    shades = np.rint(np.clip(np.concatenate(pixels, 1) / clip, 0, 1) * 255).astype(np.uint8)
    maps: dict[str, list[np.ndarray]] = {}
    for own in explained:
        for name, heat in own.heat.items():
            planes = maps.setdefault(METHODS[name], [])
            planes.extend(_peaks(plane) for plane in heat)
    for own, record in zip(explained, records, strict=True):
        if record is not None:
            side = record.mask.shape[-1] // own.views.shape[-1]
            covered = record.covered(side).astype(np.float32)
            maps.setdefault(LESIONS, []).extend(_peaks(plane) for plane in covered)
    return {
        "picture": _encoded(shades),
        "maps": {
            name: _encoded(np.rint(np.concatenate(planes, 1) * 255).astype(np.uint8))
            for name, planes in maps.items()
        },
    }


def shape_of(shape: Sequence[int], rows: int = PICTURE_ROWS) -> tuple[int, int]:
    """Rows and columns of a view whose picture has no more than `rows`."""
    height, width = shape
    factor = max(1, math.ceil(height / rows))
    return max(1, height // factor), max(1, width // factor)


def _reduced(
    plane: Float[np.ndarray, "height width"], rows: int
) -> Float[np.ndarray, "rows columns"]:
    """Means of blocks of pixels, so that `rows` are left at most."""
    height, width = shape_of(plane.shape, rows)
    image = Image.fromarray(np.asarray(plane, np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX))


def _peaks(plane: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "rows columns"]:
    """The highest of blocks of pixels: MAP_ROWS are left at most, and no peak is lost."""
    height, width = shape_of(plane.shape, MAP_ROWS)
    side = plane.shape[0] // height
    return plane[: height * side, : width * side].reshape(height, side, width, side).max((1, 3))


def _encoded(shades: UInt8[np.ndarray, "height width"]) -> str:
    data = io.BytesIO()
    Image.fromarray(shades).save(data, format="WEBP", quality=QUALITY, method=4)
    return base64.b64encode(data.getvalue()).decode()
