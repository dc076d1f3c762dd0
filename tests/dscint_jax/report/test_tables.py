import csv
import io

import numpy as np

from dscint_jax.metrics.predictions import Predictions
from dscint_jax.metrics.summary import summarise
from dscint_jax.report import tables
from dscint_jax.report.tables import Table, csv_text, latex_text, markdown_text, with_interval
from tests.dscint_jax.report.expected import METRICS, cell, expected_rows

TABLE = Table(
    "cohort",
    "Whom it is of",
    ("what", "share_of"),
    (("50 % & more", "a|b"), ("x^2 ~ {1}", "#3\\$")),
    note="A note.",
)


def test_markdown_keeps_bars_within_cells():
    assert markdown_text(TABLE).splitlines() == [
        "Whom it is of",
        "",
        "| what | share_of |",
        "| --- | ---: |",
        "| 50 % & more | a\\|b |",
        "| x^2 ~ {1} | #3\\$ |",
        "",
        "A note.",
    ]


def test_csv_is_read_back():
    assert [tuple(row) for row in csv.reader(io.StringIO(csv_text(TABLE)))] == [
        TABLE.head,
        *TABLE.rows,
    ]


def test_latex_escapes_what_latex_would_read():
    lines = latex_text(TABLE).splitlines()
    assert lines[1] == r"\begin{tabular}{lr}"
    assert r"  what & share\_of \\" in lines
    assert r"  50 \% \& more & a|b \\" in lines
    assert r"  x\textasciicircum{}2 \textasciitilde{} \{1\} & \#3\textbackslash{}\$ \\" in lines


def test_value_without_interval_stands_alone():
    assert with_interval(0.5, None) == "0.500"
    assert with_interval(0.5, [0.25, 0.75]) == "0.500 (0.250 to 0.750)"
    assert with_interval(None, None) == "not defined"


def _result():
    """Of 60 patients, so that everything has an interval."""
    random = np.random.default_rng(8)
    labels = np.repeat(random.integers(0, 3, 60), 2)
    logits = random.normal(0, 1, (120, 3)) + 1.2 * np.eye(3)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    patients = np.repeat([f"patient {n}" for n in range(60)], 2)
    predictions = Predictions(
        classes=("b", "a_c", "d"),
        labels=labels,
        predicted=probabilities.argmax(1),
        probabilities=probabilities,
        facts={
            "image_id": np.arange(120).astype(str),
            "patient_key": patients,
            "study_key": patients,
            "site_key": np.array(["x", "y"])[labels % 2],
            "view": np.tile(["posterior", "anterior"], 60),
        },
    )
    validation = predictions.only(np.arange(0, 120, 3))
    return {**summarise(predictions, validation), "data_set": None, "step": 3, "split": "test"}


def test_tables_say_what_metrics_json_holds_with_intervals():
    result = _result()
    made = [
        tables.class_table(result, "images"),
        tables.group_table(result, "images"),
        tables.confusion_table(result),
        tables.area_table(result),
        tables.point_table(result, "images"),
        tables.calibration_table(result, "images"),
        tables.abstention_table(result, "images"),
        tables.answers_table(result),
    ]
    found = {table.name: [list(row) for row in table.rows] for table in made}
    assert found == expected_rows(result)
    assert " to " in found["operating_points"][0][4]
    assert len(found["operating_points"]) == 6


def test_other_data_sets_stand_beside_the_run_with_the_step_where_it_differs():
    result = _result()
    other = {**result, "accuracy": 0.25, "step": 4}
    table = tables.metrics_table(result, None, None, {"hospital b": other})
    assert table.head[3:] == ("hospital b, test, at step 4", "95 % interval, hospital b")
    assert table.rows[0][3] == "0.2500"
    for name, row in zip(METRICS, table.rows, strict=True):
        assert row[1] == cell(result[name], digits=4)
        low, high = result["intervals"]["values"][name]
        assert row[2] == row[4] == f"{low:.3f} to {high:.3f}"


def test_data_set_named_as_a_column_leaves_the_names_of_the_rows():
    found = tables.metrics_table(_result() | {"data_set": "metric"}, None, None)
    assert found.head == ("metric", "metric", "95 % interval")
    assert found.rows[0][0] == "Accuracy"


def test_calibration_without_a_temperature_tells_of_none():
    found = tables.calibration_table(_result(), "images")
    assert "after temperature" in found.title
    result = _result()
    result["calibration"]["after"] = None
    found = tables.calibration_table(result, "images")
    assert (found.title, len(found.rows)) == ("Calibration", 1)
    assert "temperature" not in found.note
