import re
import shutil

import pytest

from dscint_jax.baseline import linear_baseline
from dscint_jax.errors import DscintError
from dscint_jax.evaluate import evaluate
from dscint_jax.report import choose_examples, write_report


@pytest.fixture(scope="module")
def reported(trained, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("reported") / "run"
    shutil.copytree(trained, workdir)
    result = evaluate(workdir, split="test", checkpoint="best")
    path, baseline = write_report(workdir)
    return workdir, result, path.read_text(), baseline


def test_page_shows_the_metrics_beside_the_published_figures(reported):
    _, result, page, baseline = reported
    row = re.search(r"<tr><td>F-1</td>(.*?)</tr>", page)[1]
    cells = re.findall(r">([^<>]+)</td>", row)
    assert cells[0] == f"{result['f1']:.4f}"
    assert cells[2] == f"{baseline.scores['f1']:.3f}"
    assert cells[3] == "0.9792"
    for name in result["classes"]:
        assert f"<td>{name.replace('_', ' ')}</td>" in page


def test_page_is_whole_without_any_other_file(reported):
    page = reported[2]
    references = re.findall(r"""(?:src|href)=["']([^"']*)""", page)
    assert references
    assert all(r.startswith(("data:image/png;base64,", "#")) for r in references)
    assert "http-equiv" not in page
    assert page.count("<svg") == 2
    assert not re.search(r"<script|@import|url\(http", page)


def test_same_run_gives_the_same_page(reported):
    workdir, _, page, _ = reported
    assert write_report(workdir)[0].read_text() == page


def test_report_without_evaluation_says_what_to_run(trained):
    with pytest.raises(DscintError, match=r"dscint_jax\.evaluate"):
        write_report(trained, split="validation")


def test_examples_are_a_typical_hit_of_each_class_and_the_surest_errors():
    rows = [
        {"label": label, "predicted": predicted, f"p_{predicted}": str(p)}
        for label, predicted, p in [
            ("a", "a", 0.9),
            ("a", "a", 0.7),
            ("a", "a", 0.5),
            ("b", "a", 0.6),
            ("b", "b", 0.8),
            ("b", "a", 0.95),
            ("a", "b", 0.55),
        ]
    ]
    assert choose_examples(rows, ["a", "b", "c"]) == [1, 4, 5, 3]


def test_linear_baseline_is_fitted_on_other_patients_and_repeats(data_dir, monkeypatch):
    first = linear_baseline(data_dir)
    assert first == linear_baseline(data_dir)
    assert first.side == (64, 16)
    assert first.scores["accuracy"] < 0.9
    # Hardly held back, it knows the patients that it was fitted on.
    monkeypatch.setattr("dscint_jax.baseline.STRENGTHS", (1.0,))
    assert linear_baseline(data_dir, "train").scores["accuracy"] > 0.9
