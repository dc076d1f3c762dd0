"""What a model file says of itself, as texts by name.

In: a checkpoint, and what evaluation found of it. Out: network, recipe, classes, step, how an image
becomes the input, what was chosen on validation images, the licence, a checksum, and a card for
people.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from dscint_jax.config import MAY_CHANGE, STUDIES, Config
from dscint_jax.evaluate.restored import Chosen, TrainedWeights
from dscint_jax.export.from_counts import COLUMNS, ROWS
from dscint_jax.input_pipeline import NOUNS
from dscint_jax.metrics.scores import METRIC_NAMES, in_words, interval_in_words
from tfds_builder.commandline.command import installed_version
from tfds_builder.commandline.errors import UserError

USE = "research only: no finding for a patient's care"

NO_LICENCE = "not stated; that of the software does not extend to weights"
"""Who trained a network says what others may do with it."""

SPDX = "https://spdx.org/licenses"

NOT_FITTED = "not fitted"


def weights_digest(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of weights with their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()


def metadata_of_licence(expression: str | None) -> dict[str, str]:
    """What is said of the licence of the weights; UserError where SPDX has none of the name."""
    if expression is None:
        return {"licence": NO_LICENCE}
    try:
        licence = canonicalize_license_expression(expression)
    except InvalidLicenseExpression:
        raise UserError(
            f"--licence {expression} is no SPDX licence expression; give one such as CC-BY-NC-4.0, "
            f"or LicenseRef-NAME for one's own"
        ) from None
    names = [name for name in re.findall(r"[\w.+-]+", licence) if name not in ("AND", "OR", "WITH")]
    texts = [f"{SPDX}/{name}.html" for name in names if not name.startswith("LicenseRef-")]
    return {"licence": licence} | ({"licence_text": " ".join(texts)} if texts else {})


def metadata_of(
    trained: TrainedWeights, classes: tuple[str, ...], fingerprint: str, chosen: Chosen | None
) -> dict[str, str]:
    """What is said of a checkpoint.

    Args:
      trained: the checkpoint.
      classes: in the order of the probabilities.
      fingerprint: of the data set trained on.
      chosen: on validation images; None of a checkpoint that was not evaluated.
    """
    config = trained.config
    points = chosen.least_confidence if chosen else {}
    return {
        # Loaders of other libraries ask for it.
        "format": "pt",
        "network": config.model,
        "recipe": json.dumps(_recipe(config), sort_keys=True),
        "classes": json.dumps(classes),
        "step": str(trained.step),
        "records": config.data.records,
        "input": (
            f"min(sqrt(counts / scale), {config.data.clip}), counts summed over blocks of "
            f"{config.data.pool}x{config.data.pool} pixels, scale in counts a block"
        ),
        "temperature": str(chosen.temperature) if chosen else NOT_FITTED,
        "least_confidence": json.dumps({str(target): least for target, least in points.items()}),
        "dataset_fingerprint": fingerprint,
        "dscint_jax": installed_version("dscint-jax") or "unknown",
        "use": USE,
    }


def _recipe(config: Config) -> dict[str, Any]:
    """A config without places and what else leaves the numbers alone."""
    recipe = config.to_dict()
    for name in MAY_CHANGE:
        *groups, last = name.split(".")
        place = recipe
        for group in groups:
            place = place[group]
        del place[last]
    return recipe


def metadata_of_function(config: Config) -> dict[str, str]:
    """What is said of the function from counts to probabilities, in place of the network's."""
    studies = config.data.records == STUDIES
    axes = f"batch, {'view, ' if studies else ''}{ROWS}, {COLUMNS}"
    views = "anterior, posterior, zeros where one is missing; " if studies else ""
    return {
        "format": "counts to probabilities",
        "input": (
            f"counts int32 ({axes}): counts a pixel, {views}head first, posterior views as seen "
            "from behind"
        ),
        "output": "probabilities float32 (batch, classes)",
    }


def card(metadata: Mapping[str, str], result: Mapping[str, Any]) -> str:
    """What a person has to know of a file, in Markdown.

    Args:
      metadata: of the file.
      result: the metrics.json of the checkpoint on its test split; empty where there is none.
    """
    lines = [
        f"# {metadata['network']} for whole-body bone scintigrams",
        "",
        f"- Use: {metadata['use']}.",
        f"- Licence of the weights: {metadata['licence']}.",
        f"- Says: {', '.join(json.loads(metadata['classes']))}.",
        f"- Reads: {metadata['records']}; {metadata['input']}.",
        f"- Trained on: the data set {metadata['dataset_fingerprint'][:12]}, up to step "
        f"{metadata['step']}.",
    ]
    if not result:
        return "\n".join([*lines, "- Tested: not yet; its probabilities are not calibrated.", ""])
    bounds = result["intervals"]["values"]
    metrics = [
        f"{name} {in_words(result[name], 3)} ({interval_in_words(bounds[name])})"
        for name in METRIC_NAMES
    ]
    points = [
        f"{target}: {'none' if least is None else in_words(least, 3)}"
        for target, least in json.loads(metadata["least_confidence"]).items()
    ]
    lines += [
        f"- Tested on: {result['support']} {NOUNS[result['records']]} of "
        f"{result['intervals']['patients']} patients of the same data set: {', '.join(metrics)}, "
        f"in brackets the 95 % intervals.",
        f"- Chosen on validation: temperature {float(metadata['temperature']):.3f}; least "
        f"confidence by the accuracy of answers, {', '.join(points)}.",
    ]
    return "\n".join([*lines, ""])
