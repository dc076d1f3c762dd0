"""An HTML page a study, which needs nothing beside it, and one that lists all of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from dscint_jax.explain.maps import Explained
from dscint_jax.predict.answers import Answer
from dscint_jax.predict.networks import Networks, Said
from dscint_jax.predict.studies import Found, shown
from dscint_jax.report.gallery import pictures, shape_of, viewer
from dscint_jax.report.html import render
from dscint_jax.report.tables import plain
from tfds_builder.manifest import VIEWS

TEMPLATE = Path(__file__).parent / "template"
PICTURE_ROWS = 1024


def study_page(
    answer: Answer, explained: Sequence[Explained], networks: Networks, *, deidentified: bool
) -> str:
    """The page of a study that was read, with the maps of its records."""
    study, said, verdict = answer.study, answer.said, answer.verdict
    assert said
    assert verdict
    scans, classes = scans_of(said), networks.classes
    item = pictures(explained, [None] * len(scans), networks.clip, rows=PICTURE_ROWS, scans=scans)
    item["views"] = [view for record in said.records for view in _views(record)]
    shape = shape_of(scans[0].shape[-2:], PICTURE_ROWS)
    head = [
        f"{' and '.join(_views(record))}: {plain(classes[int(raw.argmax())])}"
        for record, raw in zip(said.records, said.raw, strict=True)
    ]
    rows = [
        (plain(label), f"{said.probabilities[n]:.3f}", *(f"{raw[n]:.3f}" for raw in said.raw))
        for n, label in enumerate(classes)
    ]
    identity = {
        "patient": study.patient_id,
        "study UID or name": study.study_id,
        "files": study.files_in_words,
    }
    facts = {
        **({} if deidentified else identity),
        "views": "; ".join(f"{image.view} by {image.view_rule}" for image in said.facts),
        "counts": ", ".join(f"{image.quality.total:,}" for image in said.facts),
        "notes": "; ".join(answer.notes) or "none",
        "networks": networks.description,
        "compared with the images of training": "yes" if networks.knows_training else "no",
    }
    return render(
        TEMPLATE / "study.html",
        scripts=("viewer",),
        name=study.name.replace("_", " ").capitalize(),
        verdict=verdict.text,
        remarks=answer.to_look_at(named=not deidentified),
        display=viewer(networks.clip, shape, item["maps"]),
        item=item,
        views=head,
        rows=rows,
        calibration="; they are not calibrated"
        if networks.uncalibrated
        else ", at the temperature that was chosen on validation images",
        facts=list(facts.items()),
    )


def index_page(
    networks: Networks,
    found: Found,
    answers: Sequence[Answer],
    *,
    deidentified: bool,
    pages: bool,
) -> str:
    """The page that lists all studies, with links to their own where there are `pages`."""
    rows = [
        {
            "name": answer.study.name.replace("_", " "),
            "page": f"{answer.study.name}.html" if pages and answer.said else None,
            "cells": [
                *([] if deidentified else [answer.study.patient_id]),
                "no answer"
                if answer.verdict is None or answer.verdict.abstains
                else plain(answer.verdict.label),
                f"{answer.verdict.confidence:.2f}" if answer.verdict else "",
                answer.summary(named=not deidentified),
            ],
        }
        for answer in answers
    ]
    return render(
        TEMPLATE / "index.html",
        scripts=(),
        lead=f"{len(answers)} studies, read by {networks.description}.",
        head=["study", *([] if deidentified else ["patient"]), "read as", "probability", "remarks"],
        rows=rows,
        unread=[
            ("a file" if deidentified else shown(path), f"it {reason}")
            for path, reason in sorted(found.unread.items())
        ],
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
