import json
import re
import shutil

import numpy as np
import pytest

from dscint_jax.baselines.linear_baseline import baseline_of, linear_baseline
from dscint_jax.evaluate.evaluate import evaluate
from dscint_jax.evaluate.restored import load_trained
from dscint_jax.explain.attention import Explained, explain
from dscint_jax.input_pipeline import Copies
from dscint_jax.report.figures import scintigram_figure
from dscint_jax.report.page import choose_examples, write_report
from dscint_jax.run.workdir import config_of
from tfds_builder.commandline.errors import UserError


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


@pytest.fixture(scope="module")
def reported_studies(trained_on_studies, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("reported_studies") / "run"
    shutil.copytree(trained_on_studies, workdir)
    result = evaluate(workdir, split="train", checkpoint="best")
    path, baseline = write_report(workdir, split="train")
    return workdir, result, path.read_text(), baseline


@pytest.mark.slow
def test_page_on_studies_counts_studies_and_compares_with_a_baseline_on_both_views(
    reported_studies, studies_dir
):
    _, result, page, baseline = reported_studies
    text = re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]*>", " ", page, flags=re.DOTALL)
    assert f"{result['support']} studies of" in text
    assert "views of 64x16 pixels" in text
    assert "8 studies" in text
    assert "shares sum to 1 over both views" in text
    assert not re.search(r"\bimages?\b", text)
    assert baseline == linear_baseline(studies_dir, "train", records="studies")


def test_explained_study_has_both_views_and_no_attention_on_a_missing_one(reported_studies):
    network = load_trained(reported_studies[0], split="train", checkpoint="last")
    views = network.images.read(np.arange(len(network.images)))["view"]
    chosen = [views.tolist().index(view) for view in ("both", "posterior")]
    both, posterior = explain(network, np.array(chosen))
    assert both.views.shape == both.attention.shape == (2, 64, 16)
    assert (both.attention.max((1, 2)) > 0).all()
    assert posterior.view == "posterior"
    assert not posterior.views[0].any()
    assert not posterior.attention[0].any()
    assert posterior.attention[1].any()


def test_figure_shows_the_views_then_the_views_under_attention():
    random = np.random.default_rng(2)
    for views in (1, 2):
        pixels, maps = random.random((2, 7, views, 16, 4))
        examples = [
            Explained(p, m, np.array([0.9, 0.1]), 0, "both")
            for p, m in zip(pixels, maps, strict=True)
        ]
        axes = scintigram_figure(examples, ["a", "b"]).axes
        assert len(axes) == 7 * 2 * views
        for n, panel in enumerate(axes):
            example, place = divmod(n, 2 * views)
            under, *over = (image.get_array() for image in panel.get_images())
            np.testing.assert_array_equal(under, pixels[example, place % views])
            assert len(over) == (place >= views)
            if over:
                low, high = maps[example].min(), maps[example].max()
                heat = (maps[example, place % views] - low) / (high - low)
                np.testing.assert_allclose(over[0], heat)


def test_linear_baseline_reads_the_posterior_view_too():
    random = np.random.default_rng(3)

    def batch(size):
        labels = random.integers(0, 2, size)
        counts = random.poisson(9, (size, 2, 4, 2, 1))
        counts[:, 1, 0] += 40 * labels[:, None, None]
        return {
            "counts": counts,
            "scale": np.full((size, 2), 9.0, np.float32),
            "label": labels,
            "patient_key": np.arange(size).astype(str),
        }

    batches = {split: batch(60) for split in ("train", "validation", "test")}
    baseline = baseline_of(batches, "test", 2)
    assert baseline.scores["accuracy"] > 0.9
    assert baseline.side == (4, 2)


def test_report_without_evaluation_says_what_to_run(trained):
    with pytest.raises(UserError, match=r"dscint_jax\.evaluate"):
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
    monkeypatch.setattr("dscint_jax.baselines.linear_baseline.STRENGTHS", (1.0,))
    assert linear_baseline(data_dir, "train").scores["accuracy"] > 0.9


def _text(page):
    return re.sub(r"\s+", " ", page)


def test_page_says_that_no_patient_was_in_training_and_how_that_is_known(reported):
    _, result, page, _ = reported
    said = f"the patient keys in the records of its {result['support']} images were compared"
    assert "No patient of this split was in training" in _text(page)
    assert said in _text(page).split("<h2>")[0]


@pytest.mark.slow
def test_page_on_copies_says_first_that_training_has_copies_of_the_same_images(
    reported, data_dir, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(reported[0], workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["protocol"] = "augmented"
    config["data"]["copies"] = 2
    (workdir / "config.json").write_text(json.dumps(config))
    leakage = evaluate(workdir, split="test", checkpoint="best")["leakage"]
    path, baseline = write_report(workdir)
    top = _text(path.read_text()).split("<h2>")[0]
    assert f"{leakage['images']} copies of images of" in top
    assert (
        f"Of the {leakage['images']} copies in this split, "
        f"{leakage['images_with_a_copy_in_training']} have a copy of the same image in training, "
        f"and {leakage['images_of_a_patient_in_training']} are of a patient who is in training. "
        f"The score is not one for new patients."
    ) in top
    copies = Copies(2, seed=config["seed"])
    ranges = config_of(workdir).augmentation
    assert baseline == linear_baseline(data_dir, copies=copies, ranges=ranges)
    assert baseline != linear_baseline(data_dir, copies=copies)


def test_explained_copy_is_shown_as_the_network_sees_it(trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    config = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(config | {"protocol": "augmented"}))
    network = load_trained(workdir, split="test", checkpoint="last")
    batch = network.images.read(np.arange(8))
    seen = network.as_seen(batch)
    plain = np.sqrt(batch["counts"] / batch["scale"][:, None, None, None])
    moved = [not np.allclose(a, b, atol=1e-4) for a, b in zip(seen, plain, strict=True)]
    assert any(moved)
    assert not any(np.array(moved)[batch["copy"] < 0])
    views = [explained.views for explained in explain(network, np.arange(8))]
    np.testing.assert_allclose(np.stack(views)[..., None].squeeze(1), seen, rtol=1e-6)
