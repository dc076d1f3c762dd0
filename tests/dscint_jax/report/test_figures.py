import re
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import numpy as np
import pytest

from dscint_jax.metrics.predictions import Predictions
from dscint_jax.metrics.summary import summarise
from dscint_jax.report import figures


@pytest.fixture(scope="module")
def predictions():
    random = np.random.default_rng(5)
    labels = random.integers(0, 3, 90)
    logits = random.normal(0, 1, (90, 4)) + 1.5 * np.eye(4)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    names = np.array([f"p{n // 2}" for n in range(90)])
    return Predictions(
        classes=("a", "b", "c_d", "absent"),
        labels=labels,
        predicted=probabilities.argmax(1),
        probabilities=probabilities,
        facts=dict.fromkeys(("image_id", "patient_key", "study_key"), names),
    )


@pytest.fixture(scope="module")
def result(predictions):
    return summarise(predictions, predictions)


def _curves(figure):
    return {line.get_label(): line.get_data() for line in figure.axes[0].get_lines()}


def test_area_under_each_roc_curve_is_that_of_metrics_json(predictions, result):
    curves = _curves(figures.roc_figure(predictions, None))
    assert {"a", "b", "c d"} < curves.keys()
    assert "absent" not in curves
    for name in ("a", "b", "c_d"):
        across, up = curves[name.replace("_", " ")]
        assert np.trapezoid(up, across) == pytest.approx(result["areas"][name]["auroc"])


def test_operating_points_lie_where_they_do_here(predictions, result):
    lines = figures.roc_figure(predictions, result["operating_points"]).axes[0].get_lines()
    places = [
        tuple(map(float, np.ravel(line.get_data()))) for line in lines if len(line.get_xdata()) == 1
    ]
    expected = [
        (1 - point["specificity"], point["sensitivity"])
        for points in result["operating_points"].values()
        for point in points.values()
    ]
    np.testing.assert_allclose(sorted(places), sorted(expected))


def test_steps_under_each_precision_recall_curve_are_the_average_precision(predictions, result):
    curves = _curves(figures.precision_recall_figure(predictions))
    for name in ("a", "b", "c_d"):
        recall, precision = curves[name.replace("_", " ")]
        area = -np.sum(np.diff(recall) * precision[:-1])
        assert area == pytest.approx(result["areas"][name]["average_precision"], abs=1e-9)


def test_abstention_curve_ends_at_the_accuracy(predictions, result):
    ((coverage, accuracy),) = _curves(figures.abstention_figure(predictions, "images")).values()
    assert (coverage[-1], accuracy[-1]) == (1, pytest.approx(result["accuracy"]))


def test_ink_is_the_colour_of_the_text_and_ids_are_the_figures_own(result):
    with mpl.rc_context(figures.STYLE):
        figure = figures.reliability_figure(result["calibration"])
        svg = figures.as_svg(figure, "reliability", "in words")
    assert figures.INK not in svg
    assert "currentColor" in svg
    ids = re.findall(r'id="([^"]*)"', svg)
    assert ids
    assert all(name.startswith("reliability-") for name in ids)
    assert set(re.findall(r'(?:url\(|href=")#([^)"]*)', svg)) <= set(ids)
    root = ElementTree.fromstring(figures.svg_file(svg).encode())
    assert root.attrib["aria-label"] == "in words"
