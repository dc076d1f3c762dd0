import csv
import html.parser
import io
import json
import re
import shutil

import numpy as np
import pytest

from dscint_jax.baselines.linear_baseline import baseline_of, linear_baseline
from dscint_jax.evaluate.evaluate import evaluate
from dscint_jax.evaluate.restored import load_trained
from dscint_jax.explain.explanations import write_explanations
from dscint_jax.explain.maps import METHODS, explain
from dscint_jax.metrics.scores import METRIC_NAMES
from dscint_jax.report.page import write_report
from dscint_jax.run.workdir import config_of
from tests.dscint_jax.report.expected import cell, expected_rows
from tfds_builder.commandline.errors import UserError


class _Tables(html.parser.HTMLParser):
    """The tables of a page: by data-name the head, and the rows by their first cell."""

    def __init__(self, page):
        super().__init__()
        self.found, self._rows, self._cell = {}, None, None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self._rows = self.found[dict(attributes)["data-name"]] = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._cell = ""

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data.replace("\N{NO-BREAK SPACE}", " ")

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._rows[-1].append(self._cell)
            self._cell = None


@pytest.fixture(scope="module")
def reported(trained, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("reported") / "run"
    shutil.copytree(trained, workdir)
    result = evaluate(workdir, split="test", checkpoint="best")
    write_explanations(workdir, split="test", checkpoint="best")
    path, baseline = write_report(workdir)
    return workdir, result, path.read_text(), baseline


@pytest.fixture(scope="module")
def tables(reported):
    return _Tables(reported[2]).found


def test_page_shows_the_metrics_beside_the_published_figures(reported, tables):
    _, result, _, baseline = reported
    head, *rows = tables["metrics"]
    assert head == ["metric", "this run", "95 % interval", "linear baseline", "published Dscint"]
    published = {"Accuracy": "0.9801", "F-1": "0.9792"}
    for name, cells in zip(METRIC_NAMES, rows, strict=True):
        bounds = result["intervals"]["values"][name]
        assert cells[1] == f"{result[name]:.4f}"
        assert cells[2] == (f"{bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else "not defined")
        assert cells[3] == f"{baseline.scores[name]:.3f}"
        assert cells[4] == published.get(cells[0], cells[4])


def test_every_number_of_metrics_json_is_on_the_page_and_no_other(reported, tables):
    for name, rows in expected_rows(reported[1]).items():
        assert rows
        assert tables[name][1:] == rows


def test_tables_beside_the_page_are_those_on_it(reported, tables):
    folder = reported[0] / "report" / "tables"
    assert {path.stem for path in folder.iterdir()} == {*tables}
    for name, rows in tables.items():
        assert list(csv.reader(io.StringIO((folder / f"{name}.csv").read_text()))) == rows
        markdown = (folder / f"{name}.md").read_text()
        latex = (folder / f"{name}.tex").read_text()
        assert markdown.count("\n| ") == len(rows) + 1
        assert latex.count("\\\\\n") == len(rows)
        assert not re.search(r"(?<!\\)[&%_#]", re.sub(r" & |^%.*$", "", latex, flags=re.M))


def test_figures_beside_the_page_are_whole_and_read_on_light_and_dark(reported):
    files = sorted((reported[0] / "report" / "figures").iterdir())
    assert len(files) == 7
    for path in files:
        svg = path.read_text()
        assert "prefers-color-scheme: dark" in svg
        assert "currentColor" in svg
        assert "#000000" not in svg
        assert not re.search(r"fill: (#ffffff|white)", svg)


def test_page_is_whole_without_any_other_file(reported):
    page = reported[2]
    references = re.findall(r"""(?:src|href|action|srcset)=["']([^"']*)""", page)
    assert references
    assert all(r.startswith(("data:", "#")) for r in references)
    assert "http-equiv" not in page
    assert page.count("<svg") == 7
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|import\(", page)
    assert len(page.encode()) < 5_000_000


def test_same_run_gives_the_same_files(reported):
    workdir = reported[0]

    def files():
        paths = sorted((workdir / "report").rglob("*"))
        return {path: path.read_bytes() for path in paths if path.is_file()}

    before = files()
    write_report(workdir)
    assert files() == before


def test_gallery_has_every_study_of_the_split(reported):
    page = reported[2]
    data = json.loads(re.search(r'id="gallery-data">(.*?)</script>', page, re.DOTALL)[1])
    assert data["of"] == len(data["cases"]) == reported[1]["studies"]["support"]
    right = sum(case["right"] for case in data["cases"])
    assert right == pytest.approx(reported[1]["studies"]["accuracy"] * data["of"])
    assert data["maps"] == ["attention", "Grad-CAM", "gradient x input", "true lesions"]
    assert all(len(case["views"]) == 2 for case in data["cases"])


def test_page_has_the_scores_of_maps_of_the_same_checkpoint(reported, tables, tmp_path):
    workdir, result = reported[:2]
    file = workdir / "eval" / "test" / "explanations.json"
    found = json.loads(file.read_text())
    every = found["scores"]["all"]
    rows = {row[0]: row[1:] for row in tables["pointing"][1:]}
    assert len(rows) == len(METHODS) + 3
    for name, title in [*METHODS.items(), ("brightest", "brightest")]:
        values = [every[score][name] for score in ("pointing", "energy")]
        assert rows[title][:2] == [cell(value["mean"], value["interval"]) for value in values]
    groups = {row[0]: row[1:] for row in tables["pointing_groups"][1:]}
    neck = found["scores"]["site"]["neck (fixed)"]
    assert groups["site: neck (fixed)"][0] == str(neck["images"])
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    other = found | {"step": result["step"] + 1}
    (copy / "eval" / "test" / "explanations.json").write_text(json.dumps(other))
    page = write_report(copy)[0].read_text()
    assert f"--split test --checkpoint {result['step']}, before the report, does so" in page
    assert 'data-name="pointing"' not in page


def test_page_tells_where_the_images_come_from(reported, tables, cohort):
    offered = len((cohort / "manifest.csv").read_text().splitlines()) - 1
    assert f"<b>{offered}</b> rows offered" in _text(reported[2])
    rows = {row[0]: row for row in tables["splits"][1:]}
    assert rows["in both train and test"][1:4] == ["0", "0", "0"]
    assert int(rows["test"][3]) == reported[1]["support"]


def test_page_says_first_that_mirror_images_were_read_too(reported, tmp_path):
    said = "means over each image and its mirror image"
    assert said not in reported[2]
    workdir = tmp_path / "run"
    shutil.copytree(reported[0], workdir)
    evaluate(workdir, split="test", checkpoint="best", mirror=True)
    assert said in write_report(workdir)[0].read_text()


def test_results_on_other_data_sets_stand_beside_those_of_the_run(reported, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(reported[0], workdir)
    shutil.copytree(workdir / "eval" / "test", workdir / "eval" / "hospital b" / "test")
    page = write_report(workdir)[0].read_text()
    head, *rows = _Tables(page).found["metrics"]
    assert head[3:5] == ["hospital b, test", "95 % interval, hospital b"]
    assert all(row[3:5] == row[1:3] for row in rows)


@pytest.mark.parametrize("file", ["metrics.json", "predictions.csv"])
def test_results_of_an_earlier_version_are_refused_in_one_line(file, reported, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(reported[0], workdir)
    path = workdir / "eval" / "test" / file
    if file == "metrics.json":
        path.write_text(json.dumps({k: v for k, v in reported[1].items() if k != "areas"}))
    else:
        path.write_text(path.read_text().replace("study_key,", "study,", 1))
    with pytest.raises(UserError, match=rf"{file} lacks .*evaluate again") as error:
        write_report(workdir)
    assert "\n" not in str(error.value)


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
    # What the data set holds, and what checklists ask for, is told in images everywhere.
    about_data = r'<section id="(?:data|splits|checklists)".*?</section>'
    text = re.sub(about_data, "", page, flags=re.DOTALL)
    text = re.sub(r"<(style|script|svg).*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL)
    assert f"{result['support']} studies of" in text
    assert "views of 64x16 pixels" in text
    assert "8 studies" in text
    assert "shares sum to 1 over both views" in text
    assert not re.search(r"\bimages?\b", text)
    assert baseline == linear_baseline(studies_dir, "train", records="studies")


def test_explained_study_has_both_views_and_no_attention_on_a_missing_one(reported_studies):
    network = load_trained(reported_studies[0], split="train", checkpoint="latest")
    views = network.images.read(np.arange(len(network.images)))["view"]
    chosen = [views.tolist().index(view) for view in ("both", "posterior")]
    both, posterior = explain(network, np.array(chosen))
    assert both.views.shape == both.maps["attention"].shape == (2, 64, 16)
    assert (both.maps["attention"].max((1, 2)) > 0).all()
    assert posterior.view == "posterior"
    assert not posterior.views[0].any()
    assert not posterior.maps["attention"][0].any()
    assert posterior.maps["attention"][1].any()


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


def test_checkpoint_that_is_gone_is_named_with_what_to_do(reported, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(reported[0], workdir)
    path = workdir / "eval" / "test" / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 999}))
    with pytest.raises(UserError, match="checkpoint of step 999, which is gone; evaluate again"):
        write_report(workdir)


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


@pytest.mark.exhaustive
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
    copies = 2
    ranges = config_of(workdir).augmentation
    assert baseline == linear_baseline(data_dir, copies=copies, ranges=ranges)
    assert baseline != linear_baseline(data_dir, copies=copies)


def test_explained_copy_is_shown_as_the_network_sees_it(trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    config = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(config | {"protocol": "augmented"}))
    network = load_trained(workdir, split="test", checkpoint="latest")
    batch = network.images.read(np.arange(8))
    seen = network.as_seen(batch)
    plain = np.sqrt(batch["counts"] / batch["scale"][:, None, None, None])
    moved = [not np.allclose(a, b, atol=1e-4) for a, b in zip(seen, plain, strict=True)]
    assert any(moved)
    assert not any(np.array(moved)[batch["copy"] < 0])
    views = [explained.views for explained in explain(network, np.arange(8))]
    np.testing.assert_allclose(np.stack(views)[..., None].squeeze(1), seen, rtol=1e-6)
