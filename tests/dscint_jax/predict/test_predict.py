import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
import safetensors
from PIL import Image

from dscint_jax.evaluate.evaluate import evaluate
from dscint_jax.evaluate.restored import load_weights
from dscint_jax.export.metadata import weights_digest
from dscint_jax.export.model_file import export
from dscint_jax.metrics.calibration import with_temperature
from dscint_jax.predict.predict import open_networks, predict
from dscint_jax.predict.studies import find_studies, read_studies, worker_pool
from dscint_jax.training.train import train
from dscint_jax.weights.export_torch import write_safetensors
from tests.dscint_jax.conftest import load_tiny_config
from tfds_builder.commandline.errors import UserError


@pytest.fixture
def workdir(trained, tmp_path):
    """A finished run of one's own: what is measured of its data is kept in it."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """A finished run, with the temperature that evaluation chose."""
    workdir = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(trained, workdir)
    return workdir, evaluate(workdir, split="test", checkpoint="best")


@pytest.fixture(scope="module")
def incoming(cohort, tmp_path_factory):
    """The cohort's files, and nothing else."""
    folder = tmp_path_factory.mktemp("incoming") / "files"
    shutil.copytree(cohort / "images", folder)
    return folder


@pytest.fixture(scope="module")
def predicted(evaluated, incoming, tmp_path_factory):
    out = tmp_path_factory.mktemp("predicted") / "out"
    return out, predict([evaluated[0]], [incoming], out)


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _chances(row):
    return tuple(value for name, value in row.items() if name.startswith("p_"))


def test_images_are_predicted_as_evaluation_does_to_the_last_bit(predicted, evaluated):
    out, _ = predicted
    images = {(row["view"], _chances(row)) for row in _rows(out / "predictions.csv")}
    of_test = _rows(evaluated[0] / "eval" / "test" / "predictions.csv")
    assert of_test
    assert {(row["view"], _chances(row)) for row in of_test} <= images


def test_study_is_the_mean_of_its_images_at_the_temperature_that_evaluation_chose(
    predicted, evaluated, incoming
):
    out, answers = predicted
    studies, images = _rows(out / "studies.csv"), _rows(out / "predictions.csv")
    assert len(studies) == len(answers) == len(list(incoming.iterdir()))
    assert {row["files"] for row in studies} == {str(path) for path in incoming.iterdir()}
    temperature = evaluated[1]["calibration"]["temperature"]
    for row in studies:
        own = [_chances(image) for image in images if image["study"] == row["study"]]
        warmed = with_temperature(np.array(own, float), temperature).mean(0)
        np.testing.assert_allclose(np.array(_chances(row), float), warmed, atol=2e-6)
        assert float(row["confidence"]) == pytest.approx(warmed.max(), abs=2e-6)
        names = [name.removeprefix("p_") for name in row if name.startswith("p_")]
        assert row["predicted"] == names[warmed.argmax()]


def test_answers_hold_no_pixels(predicted):
    for answer in predicted[1]:
        assert answer.said.facts
        assert answer.said.records
        arrays = [np.asarray(value) for one in answer.said.records for value in one.values()]
        assert sum(one.nbytes for one in arrays) < 10_000
        assert all(one.base is None for one in arrays)


def test_page_of_each_study_says_what_the_table_says(predicted):
    out, _ = predicted
    index = (out / "index.html").read_text()
    for row in _rows(out / "studies.csv"):
        page = (out / f"{row['study']}.html").read_text()
        for text in (row["patient_id"], row["study_id"], row["predicted"].replace("_", " ")):
            assert text in page
        assert "Not a medical device" in page
        assert f'href="{row["study"]}.html"' in index


def test_file_that_cannot_be_read_is_a_row_with_its_reason_and_the_others_go_on(
    evaluated, incoming, tmp_path
):
    first, second = sorted(incoming.iterdir())[:2]
    (tmp_path / "in").mkdir()
    shutil.copy(first, tmp_path / "in" / "a.dcm")
    (tmp_path / "in" / "b.dcm").write_bytes(second.read_bytes()[:3000])
    (tmp_path / "in" / "c.dcm").write_bytes(b"no image at all")
    predict([evaluated[0]], [tmp_path / "in"], tmp_path / "out", pages=False)
    rows = {row["files"].rpartition("/")[2]: row for row in _rows(tmp_path / "out" / "studies.csv")}
    assert rows["a.dcm"]["predicted"]
    assert "b.dcm was not read: it holds" in rows["b.dcm"]["remarks"]
    assert rows["c.dcm"]["remarks"].startswith("not read: it ")
    assert not rows["b.dcm"]["predicted"]
    assert not rows["c.dcm"]["predicted"]


def test_copy_of_an_image_changes_no_probability_and_is_said(
    evaluated, incoming, predicted, tmp_path
):
    first = min(incoming.iterdir())
    (tmp_path / "in").mkdir()
    for name in ("1.dcm", "copy of 1.dcm"):
        shutil.copy(first, tmp_path / "in" / name)
    predict([evaluated[0]], [tmp_path / "in"], tmp_path / "out", pages=False)
    (row,) = _rows(tmp_path / "out" / "studies.csv")
    alone = next(row for row in _rows(predicted[0] / "studies.csv") if row["files"] == str(first))
    assert _chances(row) == _chances(alone)
    assert "copy of 1.dcm was not read: it has the SOPInstanceUID of another" in row["remarks"]


def test_deidentified_results_hold_no_name_of_patient_study_or_file(evaluated, incoming, tmp_path):
    first = min(incoming.iterdir())
    (tmp_path / "in").mkdir()
    shutil.copy(first, tmp_path / "in" / "Canary^Anna.dcm")
    (tmp_path / "in" / "Canary^Anna_2.dcm").write_bytes(b"damaged")
    (answer,) = predict([evaluated[0]], [tmp_path / "in"], tmp_path / "out", deidentified=True)
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    for secret in (answer.study.patient_id, answer.study.study_id, "Canary"):
        assert secret
        assert secret.encode() not in written


def test_two_pictures_of_one_study_come_together_and_no_answer_is_given_when_unsure(
    evaluated, tmp_path
):
    random = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for view in ("anterior", "posterior"):
        body = np.zeros((1024, 256))
        body[100:900, 70:190] = 9
        pixels = np.minimum(random.poisson(body), 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"p17_{view}.png")
    options = {"least_confidence": 1.0, "accept": True, "pages": False}
    (answer,) = predict([evaluated[0]], [tmp_path / "in"], tmp_path / "out", **options)
    assert len(answer.said.records) == 2
    (row,) = _rows(tmp_path / "out" / "studies.csv")
    assert row["predicted"] == ""
    assert row["remarks"].startswith("No answer: the largest")


@pytest.mark.slow
def test_several_runs_are_averaged(evaluated, incoming, data_dir, tmp_path):
    other = tmp_path / "other"
    train(load_tiny_config().replaced({"data.dir": str(data_dir), "seed": 5}), other)
    evaluate(other, split="test", checkpoint="best")
    some = sorted(incoming.iterdir())[:3]
    runs = {"a": [evaluated[0]], "b": [other], "both": [evaluated[0], other]}
    found = {}
    for name, workdirs in runs.items():
        predict(workdirs, some, tmp_path / name, pages=False)
        found[name] = [
            np.array([_chances(row) for row in _rows(tmp_path / name / table)], float)
            for table in ("studies.csv", "predictions.csv")
        ]
    for a, b, both in zip(*(found[name] for name in ("a", "b", "both")), strict=True):
        np.testing.assert_allclose(both, (a + b) / 2, atol=2e-6)


@pytest.mark.slow
def test_network_that_reads_pairs_of_views_is_asked_for_studies(
    trained_on_studies, incoming, tmp_path
):
    shutil.copytree(trained_on_studies, tmp_path / "run")
    some = sorted(incoming.iterdir())[:2]
    answers = predict([tmp_path / "run"], some, tmp_path / "out")
    assert all(len(answer.said.records) == 1 for answer in answers)
    assert {row["view"] for row in _rows(tmp_path / "out" / "predictions.csv")} == {"both"}


def test_run_that_was_not_evaluated_is_said_to_be_uncalibrated(workdir, incoming, tmp_path, capsys):
    predict([workdir], [min(incoming.iterdir())], tmp_path / "out")
    assert "not calibrated" in capsys.readouterr().out
    assert "not calibrated" in (tmp_path / "out" / "study_0001.html").read_text()


@pytest.mark.parametrize(
    "inputs, out, options, message",
    [
        (["nowhere"], "out", {}, "nowhere: no such file or folder"),
        (["empty"], "out", {}, "holds no file that may be an image"),
        (["files"], "full", {}, "--out .*full is not empty; give a new folder"),
        (["files"], "out", {"least_confidence": 2.0}, "is no probability"),
        (["files"], "out", {"checkpoint": "77"}, "77"),
    ],
)
def test_what_does_not_fit_is_one_line(inputs, out, options, message, workdir, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in ("files", "full"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "some.dcm").write_bytes(b"x")
    with pytest.raises(UserError, match=message) as error:
        predict([workdir], [tmp_path / name for name in inputs], tmp_path / out, **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_image_whose_counts_training_never_had_is_said_to_be_so(evaluated, incoming, tmp_path):
    some = sorted(incoming.iterdir())[:4]
    for answer in predict([evaluated[0]], some, tmp_path / "known", pages=False):
        assert not answer.said.strange
    assert (evaluated[0] / "familiarity.npz").exists()
    Image.fromarray(np.full((1024, 256), 255, np.uint8)).save(tmp_path / "bright.png")
    (answer,) = predict(
        [evaluated[0]], [tmp_path / "bright.png"], tmp_path / "out", pages=False, accept=True
    )
    assert any("counts; training has" in text for text in answer.remarks)


def test_without_the_data_set_nothing_is_compared_and_that_is_said(
    workdir, incoming, tmp_path, capsys
):
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["dir"] = str(tmp_path / "gone")
    (workdir / "config.json").write_text(json.dumps(config))
    predict([workdir], [min(incoming.iterdir())], tmp_path / "out", pages=False)
    assert "not compared with those of training" in capsys.readouterr().out


def test_temperature_of_another_checkpoint_is_not_taken(evaluated, incoming, tmp_path, capsys):
    shutil.copytree(evaluated[0], tmp_path / "run")
    metrics = tmp_path / "run" / "eval" / "test" / "metrics.json"
    metrics.write_text(json.dumps(evaluated[1] | {"step": evaluated[1]["step"] - 1}))
    predict([tmp_path / "run"], [min(incoming.iterdir())], tmp_path / "out", pages=False)
    assert "not calibrated; first: python -m" in capsys.readouterr().out


def test_network_is_of_the_checkpoint_that_was_best_when_it_was_opened(
    evaluated, incoming, tmp_path
):
    shutil.copytree(evaluated[0], tmp_path / "run")
    networks = open_networks([tmp_path / "run"], "best")
    # Meanwhile the training finds another one to be the best.
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with worker_pool(1) as pool:
        found = find_studies([min(incoming.iterdir())], pool)
        ((_, read, _),) = read_studies(found.studies, pool)
    assert networks.read([read])[0].records
    assert f"step {evaluated[1]['step']}" in networks.description
    assert networks.temperatures == [evaluated[1]["calibration"]["temperature"]]


def test_no_temperature_is_taken_where_a_damaged_checkpoint_gives_way(evaluated, monkeypatch):
    def of_another_step(*arguments, **options):
        weights = load_weights(*arguments, **options)
        return dataclasses.replace(weights, step=weights.step - 1)

    monkeypatch.setattr("dscint_jax.predict.runs.load_weights", of_another_step)
    networks = open_networks([evaluated[0]], "best")
    assert len(networks.uncalibrated) == 1


def test_maps_are_of_the_class_of_the_study(evaluated, incoming):
    networks = open_networks([evaluated[0]], "best")
    with worker_pool(1) as pool:
        found = find_studies(sorted(incoming.iterdir())[:4], pool)
        read = [own for _, own, _ in read_studies(found.studies, pool)]
    studies = networks.read(read)
    # As if other images of the study, or another network, had said something else.
    others = [
        dataclasses.replace(said, probabilities=np.roll(said.probabilities, 1)) for said in studies
    ]
    for said, explained in zip(others, networks.explain(others), strict=True):
        assert {item.target for item in explained} == {said.probabilities.argmax()}
        assert len(explained) == len(said.records)


def _with_answers(workdir, *, step=0, least=0.4):
    """The run's evaluation as it would be with another least confidence for 0.9, none for 0.95."""
    path = workdir / "eval" / "test" / "metrics.json"
    result = json.loads(path.read_text())
    for point, value in zip(result["answers"], (least, None), strict=True):
        point["least_confidence"] = value
    path.write_text(json.dumps(result | {"step": result["step"] + step}))


def test_accuracy_of_answers_takes_the_least_confidence_that_evaluation_chose(
    evaluated, incoming, predicted, tmp_path, capsys
):
    shutil.copytree(evaluated[0], tmp_path / "run")
    confidence = [answer.verdict.confidence for answer in predicted[1]]
    least = float(np.median(confidence)) + 1e-6
    _with_answers(tmp_path / "run", least=least)
    options = {"least_accuracy": 0.9, "pages": False}
    answers = predict([tmp_path / "run"], [incoming], tmp_path / "out", **options)
    assert f"no answer is given below a probability of {least:.3f}" in capsys.readouterr().out
    assert [answer.verdict.abstains for answer in answers] == [p < least for p in confidence]
    assert not any(answer.verdict.abstains for answer in predicted[1])


@pytest.mark.parametrize(
    "accuracy, change, message",
    [
        (0.8, {}, "--least_accuracy 0.8: it is chosen for 0.9 or 0.95"),
        (0.95, {}, "show no threshold that keeps it; give one by --least_confidence"),
        (0.9, {"step": 1}, "was chosen for this checkpoint of .*; first: python -m"),
    ],
)
def test_least_confidence_that_was_not_chosen_is_not_made_up(
    accuracy, change, message, evaluated, incoming, tmp_path
):
    shutil.copytree(evaluated[0], tmp_path / "run")
    _with_answers(tmp_path / "run", **change)
    some = [min(incoming.iterdir())]
    with pytest.raises(UserError, match=message):
        predict([tmp_path / "run"], some, tmp_path / "out", least_accuracy=accuracy)
    assert not (tmp_path / "out").exists()


def test_of_several_runs_no_least_confidence_is_known(evaluated, incoming, tmp_path):
    runs = [evaluated[0], evaluated[0]]
    with pytest.raises(UserError, match="chosen for one run"):
        predict(runs, [min(incoming.iterdir())], tmp_path / "out", least_accuracy=0.9)


def test_evaluation_of_mirror_images_calibrates_nothing(evaluated, incoming, tmp_path, capsys):
    shutil.copytree(evaluated[0], tmp_path / "run")
    metrics = tmp_path / "run" / "eval" / "test" / "metrics.json"
    metrics.write_text(json.dumps(evaluated[1] | {"test_time_augmentation": "mirror"}))
    predict([tmp_path / "run"], [min(incoming.iterdir())], tmp_path / "out", pages=False)
    assert "not calibrated; first: python -m" in capsys.readouterr().out


def test_model_file_says_what_its_work_directory_says_to_the_last_bit(
    evaluated, incoming, predicted, tmp_path, capsys
):
    export(evaluated[0], tmp_path / "dscint.safetensors")
    answers = predict([], [incoming], tmp_path / "out", models=[tmp_path / "dscint.safetensors"])
    assert "as a model file does not hold them" in capsys.readouterr().out
    for answer, expected in zip(answers, predicted[1], strict=True):
        np.testing.assert_array_equal(answer.said.raw, expected.said.raw)
        np.testing.assert_array_equal(answer.said.probabilities, expected.said.probabilities)
    for table in ("studies.csv", "predictions.csv"):
        both = [_rows(folder / table) for folder in (tmp_path / "out", predicted[0])]
        assert [row | {"remarks": ""} for row in both[0]] == [
            row | {"remarks": ""} for row in both[1]
        ]
    page, theirs = (folder / "study_0001.html" for folder in (tmp_path / "out", predicted[0]))
    data = [text.read_text().partition('id="study-data">')[2] for text in (page, theirs)]
    assert data[0]
    assert data[0] == data[1]


def test_model_file_of_a_network_for_studies_is_read_too(
    trained_on_studies, incoming, tmp_path, capsys
):
    shutil.copytree(trained_on_studies, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "dual.safetensors")
    some = sorted(incoming.iterdir())[:2]
    answers = predict([], some, tmp_path / "a", models=[tmp_path / "dual.safetensors"], pages=False)
    assert "not calibrated; first: evaluate the checkpoint, and" in capsys.readouterr().out
    expected = predict([tmp_path / "run"], some, tmp_path / "b", pages=False)
    for answer, other in zip(answers, expected, strict=True):
        np.testing.assert_array_equal(answer.said.raw, other.said.raw)


def _changed(path, change):
    with safetensors.safe_open(path, "np") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(metadata, tensors)
    write_safetensors(path, tensors, metadata)


def _without_a_weight(metadata, tensors):
    del tensors[min(tensors)]
    metadata["weights_sha256"] = weights_digest(tensors)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda metadata, _: metadata.pop("recipe"), "was not written by this version"),
        (lambda metadata, _: metadata.update(recipe="{}"), "was not written by this version"),
        (
            lambda metadata, _: metadata.update(recipe='{"model": "os:system"}'),
            "holds the network os:system, which is not of this package",
        ),
        (lambda _, tensors: tensors[min(tensors)].fill(1), "is damaged: its weights are not"),
        (_without_a_weight, "has not the weights of dscint: .* differs"),
    ],
)
def test_model_file_that_does_not_fit_is_one_line(change, message, evaluated, incoming, tmp_path):
    path = tmp_path / "dscint.safetensors"
    export(evaluated[0], path)
    _changed(path, change)
    with pytest.raises(UserError, match=message) as error:
        predict([], [min(incoming.iterdir())], tmp_path / "out", models=[path])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"no model at all, and longer than eight bytes"])
def test_file_that_is_no_model_is_one_line(content, incoming, tmp_path):
    path = tmp_path / "dscint.onnx"
    if content is not None:
        path.write_bytes(content)
    message = r"dscint.onnx (is damaged, or no safetensors file|cannot be read)"
    with pytest.raises(UserError, match=message) as error:
        predict([], [min(incoming.iterdir())], tmp_path / "out", models=[path])
    assert "\n" not in str(error.value)
