import dataclasses
import json
import resource
import subprocess
import sys

import numpy as np
import pytest

from dscint_jax.compare import compare, main, print_comparison
from dscint_jax.config import Config
from dscint_jax.metrics.predictions import predictions_text
from dscint_jax.metrics.scores import five_metrics
from tests.dscint_jax.metrics.test_predictions import some_predictions
from tfds_builder.commandline.errors import UserError


def reader(seed, skill, patients=60):
    """Who reads the images of `some_predictions(0)`, sometimes better."""
    images = some_predictions(0, patients=patients)
    random = np.random.default_rng(seed)
    logits = random.normal(size=images.probabilities.shape) + skill * np.eye(3)[images.labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return dataclasses.replace(
        images, probabilities=probabilities, predicted=probabilities.argmax(1)
    )


def make_run(workdir, predictions, *, place="test", fingerprint="abc", told=None, **fields):
    folder = workdir / "eval" / place
    folder.mkdir(parents=True, exist_ok=True)
    config = Config().replaced({"model": "dscint", **fields})
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    (folder / "predictions.csv").write_text(predictions_text(predictions))
    (folder / "metrics.json").write_text(
        json.dumps({"dataset_fingerprint": fingerprint} | (told or {}))
    )
    return workdir


@pytest.fixture
def runs(tmp_path):
    return [
        make_run(tmp_path / f"{model}{seed}", reader(seed, skill), model=model, seed=seed)
        for model, skill in (("dscint", 3.0), ("resnet18", 1.5))
        for seed in (0, 1)
    ]


def test_seeds_of_a_config_are_one_network_and_its_spread(runs):
    result = compare(runs)
    assert [network["name"] for network in result["networks"]] == ["dscint", "resnet18"]
    for network, skill in zip(result["networks"], (3.0, 1.5), strict=True):
        readers = [reader(seed, skill) for seed in (0, 1)]
        by_seed = [float(five_metrics(r.confusions().sum(0))["f1"]) for r in readers]
        assert network["seeds"] == [0, 1]
        assert network["metrics"]["f1"]["by_seed"] == pytest.approx(by_seed)
        assert network["metrics"]["f1"]["mean"] == pytest.approx(np.mean(by_seed))
        assert network["metrics"]["f1"]["sd"] == pytest.approx(np.std(by_seed, ddof=1))
    (pair,) = result["pairs"]
    difference = pair["metrics"]["f1"]
    means = [network["metrics"]["f1"]["mean"] for network in result["networks"]]
    assert difference["value"] == pytest.approx(means[0] - means[1])
    assert 0 < difference["low"] < difference["value"] < difference["high"]
    assert difference["p"] <= difference["p_holm"] < 0.05
    assert pair["areas"]["normal"]["p"] < 0.05
    assert pair["mcnemar"] is None
    json.dumps(result, allow_nan=False)


def test_readers_alike_do_not_differ_and_holm_counts_all_pairs(tmp_path):
    runs = [
        make_run(tmp_path / model, reader(seed, 2.0), model=model)
        for seed, model in enumerate(("dscint", "resnet18", "vgg16"))
    ]
    result = compare(runs)
    assert len(result["pairs"]) == 3
    tests = [v for pair in result["pairs"] for v in pair["metrics"].values()]
    assert all(test["p_holm"] > 0.05 for test in tests)
    smallest = min(tests, key=lambda test: test["p"])
    assert smallest["p_holm"] == pytest.approx(min(1, 15 * smallest["p"]))
    assert result["pairs"][0]["mcnemar"]["p"] > 0.05


def test_a_clear_difference_stays_significant_among_many_networks(tmp_path):
    runs = [
        make_run(tmp_path / model, reader(n, 4.0 * (n == 0)), model=model)
        for n, model in enumerate(("dscint", "resnet18", "resnet34", "vgg16", "alexnet"))
    ]
    result = compare(runs)
    assert result["permutations"] == 20_000
    clear = result["pairs"][0]["metrics"]["accuracy"]
    assert clear["p"] == pytest.approx(1 / 20_001)
    assert clear["p_holm"] == pytest.approx(50 / 20_001)


def test_of_two_classes_nothing_is_tested_twice(tmp_path, capsys):
    runs = []
    for n, model in enumerate(("dscint", "resnet18")):
        rows = reader(n, 2.0)
        probabilities = rows.probabilities[:, :2] / rows.probabilities[:, :2].sum(1, keepdims=True)
        labels, predicted = np.minimum(rows.labels, 1), probabilities.argmax(1)
        two = dataclasses.replace(
            rows,
            classes=("normal", "metastasis"),
            labels=labels,
            predicted=predicted,
            probabilities=probabilities,
        )
        runs.append(make_run(tmp_path / model, two, model=model))
    result = compare(runs)
    (pair,) = result["pairs"]
    assert [*pair["metrics"]] == ["accuracy", "precision", "recall", "f1"]
    assert [*pair["areas"]] == ["metastasis"]
    assert pair["areas"]["metastasis"]["p_holm"] == pair["areas"]["metastasis"]["p"]
    print_comparison(result)
    assert "AUROC normal" not in capsys.readouterr().out


def test_rows_of_the_table_may_lie_in_any_order(tmp_path, runs):
    rows = reader(0, 1.5)
    order = np.random.default_rng(0).permutation(len(rows))
    again = make_run(tmp_path / "again", rows.only(order), model="resnet18", seed=0)
    assert compare([runs[0], again])["pairs"] == compare([runs[0], runs[2]])["pairs"]


@pytest.mark.parametrize("unit, support", [("records", 240), ("studies", 120), ("patients", 60)])
def test_images_of_a_study_or_a_patient_can_be_read_together(runs, unit, support):
    result = compare(runs[::2], unit=unit)
    assert (result["support"], result["patients"]) == (support, 60)


def test_patients_with_several_classes_alone_are_named(tmp_path):
    rows = reader(0, 2.0)
    labels = np.where(rows.facts["view"] == rows.facts["view"][0], 0, 1)
    runs = [
        make_run(tmp_path / model, dataclasses.replace(rows, labels=labels), model=model)
        for model in ("dscint", "resnet18")
    ]
    with pytest.raises(UserError, match="each of the 60 patients have several classes"):
        compare(runs, unit="patients")


def test_two_networks_of_one_model_are_told_apart_by_their_folders(tmp_path):
    runs = [
        make_run(tmp_path / name, reader(n, 2.0), **{"data.dir": name, "steps": 10 + n})
        for n, name in enumerate("ab")
    ]
    names = [network["name"] for network in compare(runs)["networks"]]
    assert names == [f"dscint ({run})" for run in runs]


def test_run_with_mirror_images_is_another_network(tmp_path, runs):
    told = {"test_time_augmentation": "mirror"}
    mirrored = make_run(tmp_path / "mirrored", reader(5, 3.0), model="dscint", seed=0, told=told)
    assert [network["seeds"] for network in compare([*runs, mirrored])["networks"]] == [
        [0, 1],
        [0, 1],
        [0],
    ]


def test_what_cannot_be_compared_is_named(tmp_path, runs):
    rows = reader(0, 2.0)
    empty = make_run(tmp_path / "empty", rows)
    (empty / "eval/test/metrics.json").write_text("{}")
    again = make_run(tmp_path / "again", reader(0, 3.0), model="dscint", seed=0)
    cases = [
        ([runs[0], tmp_path / "nowhere"], "nowhere holds no config.json"),
        (runs[:2], "nothing to compare.*one network, dscint"),
        ([runs[0], runs[0]], "given twice"),
        ([*runs, again], "dscint0 and .*again have the same config and the same seed"),
        ([runs[0], empty], "metrics.json lacks dataset_fingerprint"),
        ([runs[0], make_run(tmp_path / "f", rows, fingerprint="other")], "other images"),
        ([runs[0], make_run(tmp_path / "p", reader(0, 2.0, patients=50))], "other images"),
        (
            [runs[0], make_run(tmp_path / "c", dataclasses.replace(rows, classes=("a", "b", "c")))],
            "other classes",
        ),
        (
            [runs[0], make_run(tmp_path / "l", dataclasses.replace(rows, labels=2 - rows.labels))],
            "other labels",
        ),
        ([runs[0], make_run(tmp_path / "v", rows, place="validation")], "is not there"),
    ]
    for given, words in cases:
        with pytest.raises(UserError, match=words):
            compare(given)


def test_command_prints_tables_writes_json_and_needs_no_jax(runs, tmp_path):
    out = tmp_path / "out" / "comparison.json"
    script = "import sys; from dscint_jax.compare import main; main(); print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, runs), "--out", str(out)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("False\n")
    for words in ("dscint minus resnet18", "AUROC arthritis", "±", "of 60 patients"):
        assert words in done.stdout
    assert json.loads(out.read_text()) == compare(runs)


def test_command_starts_in_two_seconds():
    took = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "dscint_jax.compare", "--help"], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Time of the processor: what else runs beside the tests does not count.
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(took) < 2


def test_comparison_fits_80_columns(runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_comparison(compare(runs))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines()[:-1])) <= 80
    # Of readers who differ as clearly as these; no p value is 0.
    assert "< 0.001" in out


def test_too_few_resamples_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare", "a", "b", "--resamples", "3"])
    with pytest.raises(UserError, match="at least 100"):
        main()
