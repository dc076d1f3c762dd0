import base64
import functools
import io

import numpy as np
import pytest
from PIL import Image

from dscint_jax.explain.lesions import LesionRecord
from dscint_jax.explain.maps import Explained
from dscint_jax.metrics.predictions import Predictions
from dscint_jax.report.gallery import by_instruction, cases_of, gallery

CLASSES = ("a", "b_c")


def _predictions(rows):
    """Of (study, view, label, p of the second class)."""
    studies, views, labels, seconds = zip(*rows, strict=True)
    second = np.array(seconds)
    probabilities = np.stack([1 - second, second], 1)
    count = len(rows)
    return Predictions(
        classes=CLASSES,
        labels=np.array(labels),
        predicted=probabilities.argmax(1),
        probabilities=probabilities,
        facts={
            "image_id": np.array([f"image-{n}" for n in range(count)]),
            "patient_key": np.array(studies),
            "study_key": np.array(studies),
            "sex": np.array(["F"] * count),
            "site_key": np.array([""] * count),
            "view": np.array(views),
        },
    )


TWO_STUDIES = [
    ("x", "posterior", 0, 0.9),
    ("y", "anterior", 1, 0.6),
    ("x", "anterior", 0, 0.4),
]


def _explain(indices, maps=("attention", "grad_cam")):
    """Pictures whose brightness is the image's index."""
    random = np.random.default_rng(3)
    return (
        Explained(
            views=np.full((1, 512, 128), i / 2.0, np.float32),
            probabilities=np.array([0.5, 0.5]),
            label=0,
            view="anterior",
            target=0,
            maps={name: random.random((1, 512, 128), np.float32) for name in maps},
        )
        for i in indices
    )


def _records(indices):
    """A lesion of one recorded pixel in the image of index 2; there are two in a pixel seen."""
    masks = np.zeros((4, 1, 1024, 256), np.uint8)
    masks[2, 0, 77, 25] = 1
    return [LesionRecord(np.ones_like(masks[i]), masks[i], np.array([2.0])) for i in indices]


def test_case_has_the_views_of_its_study_anterior_first_and_their_mean_probabilities():
    x, y = cases_of(_predictions(TWO_STUDIES))
    assert x.images == (2, 0)
    assert (x.label, x.predicted, x.right) == ("a", "b_c", False)
    assert x.confidence == pytest.approx(0.65)
    assert (y.images, y.right) == ((1,), True)


def test_views_of_several_true_classes_make_no_hit():
    (case,) = cases_of(_predictions([("x", "anterior", 0, 0.1), ("x", "posterior", 1, 0.1)]))
    assert (case.label, case.right) == ("mixed", False)


def test_copies_of_a_study_are_cases_of_their_own():
    predictions = _predictions([("x", "anterior", 0, 0.1)] * 4)
    predictions.facts["image_id"] = np.array(["i#0", "i#1", "k#0", "k#1"])
    assert [case.images for case in cases_of(predictions)] == [(0, 2), (1, 3)]


def test_surest_hits_of_each_class_come_first_then_the_surest_errors_then_doubtful_hits():
    rows = [("hit", 0, 0.4), ("surest", 0, 0.1), ("doubted", 0, 0.45), ("error", 0, 0.7)]
    rows += [("sure error", 0, 0.9), ("other", 1, 0.8)]
    predictions = _predictions([(name, "anterior", label, p) for name, label, p in rows])
    order = [rows[i][0] for i in by_instruction(cases_of(predictions))]
    assert order == ["surest", "other", "sure error", "error", "doubted", "hit"]


def test_pictures_lie_beside_each_other_and_keep_the_counts():
    found = gallery(_predictions(TWO_STUDIES), _explain, _records, clip=3.0)
    assert (found["height"], found["width"], found["of"]) == (256, 64, 2)
    x = found["cases"][0]
    assert x["views"] == ["anterior: a", "posterior: b c"]
    assert x["facts"] == {"sex": "F"}
    picture = Image.open(io.BytesIO(base64.b64decode(x["picture"]))).convert("L")
    assert picture.size == (128, 256)
    shades = np.asarray(picture, np.float64)
    # The anterior view is the image of index 2, whose pixels are 1.0 of at most 3.0.
    np.testing.assert_allclose(shades[:, :60].mean(), 255 / 3, atol=2)
    np.testing.assert_allclose(shades[:, 68:].mean(), 0, atol=2)
    assert found["maps"] == list(x["maps"]) == ["attention", "Grad-CAM", "true lesions"]
    lesions = Image.open(io.BytesIO(base64.b64decode(x["maps"]["true lesions"]))).convert("L")
    # Of the two views beside each other the first has it, where it is, and no peak is lost.
    shades = np.asarray(lesions, int)
    assert np.unravel_index(shades.argmax(), shades.shape) == (77 // 8, 25 // 8)
    assert shades.max() > 200
    assert (shades[:, 32:] < 20).all()
    attention = Image.open(io.BytesIO(base64.b64decode(x["maps"]["attention"])))
    assert attention.size == (64, 128)


def test_maps_are_those_that_the_network_has():
    explain = functools.partial(_explain, maps=("gradient_input",))
    found = gallery(_predictions(TWO_STUDIES), explain, _records, clip=3.0)
    names = ["gradient x input", "true lesions"]
    assert found["maps"] == list(found["cases"][0]["maps"]) == names


def test_least_instructive_studies_are_left_out_where_there_is_no_room():
    rows = [(f"study {n}", "anterior", 0, p) for n, p in enumerate((0.1, 0.2, 0.9, 0.45))]
    predictions = _predictions(rows)
    whole = gallery(predictions, _explain, _records, clip=3.0)
    kept = [whole["cases"][n] for n in (0, 2, 3)]
    room = sum(len(text) for case in kept for text in (case["picture"], *case["maps"].values()))
    found = gallery(predictions, _explain, _records, clip=3.0, most_bytes=room)
    assert [case["id"] for case in found["cases"]] == ["study 0", "study 2", "study 3"]
    assert found["of"] == 4
