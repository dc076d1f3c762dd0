import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from dscint_jax.baselines import neck, shortcuts
from dscint_jax.baselines.__main__ import main
from dscint_jax.baselines.body import NECK_SHAPE, Body, find_body, neck_crop
from dscint_jax.baselines.facts import fact_predictions, fact_table
from dscint_jax.baselines.inputs import read_inputs
from dscint_jax.baselines.linear_baseline import linear_baseline
from dscint_jax.baselines.neck import neck_predictions
from dscint_jax.baselines.shortcuts import measure, reaching
from dscint_jax.input_pipeline import IDENTITY_FIELDS, HeldImages, Scintigrams, load_split
from dscint_jax.metrics.scores import interval_in_words
from tfds_builder.commandline.errors import UserError

CLASSES = ("normal", "metastasis", "arthritis", "thyroid_carcinoma")
SHAPE = (256, 64)


def _body(*, top, height, middle, shape=SHAPE):
    """Expected counts of a body with head, neck, trunk, arms and legs, as ellipses and bars."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    down, across = (rows - top) / height, (columns - middle) / height
    inside = ((down - 0.065) / 0.065) ** 2 + (across / 0.045) ** 2 < 1
    inside |= (np.abs(across) < 0.03) & (down > 0.1) & (down < 0.2)
    inside |= (np.abs(across) < 0.13) & (down > 0.18) & (down < 0.5)
    inside |= (np.abs(np.abs(across) - 0.05) < 0.035) & (down > 0.5) & (down < 1)
    return ndimage.gaussian_filter(np.where(inside, 6.0, 0.1), 1.0)


def _random_body(random):
    height = random.uniform(140, 200)
    place = {
        "top": random.uniform(8, SHAPE[0] - height - 8),
        "height": height,
        "middle": SHAPE[1] / 2 + random.uniform(-8, 8),
    }
    return place, random.poisson(_body(**place))


def test_body_is_found_at_any_height_and_place():
    random = np.random.default_rng(0)
    for _ in range(20):
        place, counts = _random_body(random)
        body = find_body(counts)
        assert body.crown == pytest.approx(place["top"], abs=0.02 * place["height"])
        assert body.height == pytest.approx(place["height"], rel=0.03)
        assert body.midline == pytest.approx(place["middle"], abs=0.01 * place["height"])


def test_body_is_found_beside_a_marker_and_a_full_bladder_and_in_a_padded_image():
    random = np.random.default_rng(1)
    place = {"top": 40, "height": 180, "middle": 30}
    counts = random.poisson(_body(**place))
    plain = find_body(counts)
    counts[10:14, 50:54] += 60
    counts[120:128, 26:34] += 400
    counts[:8] = 0
    counts[-20:] = 0
    found = find_body(counts)
    assert abs(found.crown - plain.crown) <= 1
    assert abs(found.height - plain.height) <= 2
    assert abs(found.midline - plain.midline) <= 1


def test_image_without_a_body_is_taken_as_a_whole():
    assert find_body(np.zeros(SHAPE, int)) == Body(0, SHAPE[0], SHAPE[1] / 2)


def test_crop_holds_a_spot_in_the_neck_at_one_place_whatever_the_body():
    random = np.random.default_rng(2)
    for _ in range(10):
        place, counts = _random_body(random)
        spot = int(place["top"] + 0.14 * place["height"]), int(place["middle"])
        counts[spot] += 5000
        crop = neck_crop(counts, find_body(counts))
        peak = np.unravel_index(crop.argmax(), crop.shape)
        assert peak == pytest.approx((NECK_SHAPE[0] / 2, NECK_SHAPE[1] / 2), abs=4)


def test_crop_keeps_every_count_of_its_region_and_makes_none():
    random = np.random.default_rng(3)
    counts = random.poisson(0.02, SHAPE) * 9
    # 100 rows: the region runs from row 19 to row 29 and from column 25 to column 39.
    crop = neck_crop(counts, Body(10, 100, 32.0))
    assert crop.shape == NECK_SHAPE
    assert crop.sum() == pytest.approx(counts[19:29, 25:39].sum(), rel=1e-5)
    assert crop.min() >= 0


def test_crop_beyond_the_image_is_empty_there():
    crop = neck_crop(np.ones(SHAPE, int), Body(-14, 100, 0.0))
    assert (crop[:18] == 0).all()
    assert (crop[:, :25] == 0).all()
    assert (crop[18:, 25:] > 0).all()


def _necks(random, images, *, signal):
    """Crops of noise; the label is the place of a hot spot, or nothing at all."""
    labels = random.integers(0, 4, images)
    expected = np.full((images, *NECK_SHAPE, 1), 6.0)
    if signal:
        for image, label in zip(expected, labels, strict=True):
            row, column = 8 + 16 * (label // 2), 24 + random.integers(-3, 4)
            image[row : row + 4, column : column + 4] += 20 if label % 2 else 60
    fields = {
        "counts": random.poisson(expected).astype(np.float32),
        "scale": np.full(images, 12.0, np.float32),
        "label": labels.astype(np.int32),
        "mask": np.ones(images, bool),
        "image_id": np.array([f"image-{n}" for n in range(images)]),
        **{name: np.full(images, "") for name in IDENTITY_FIELDS if name != "image_id"},
        "patient_key": np.array([f"patient-{n}" for n in range(images)]),
    }
    return Scintigrams(
        split="made",
        classes=CLASSES,
        class_counts=tuple(np.bincount(labels, minlength=4).tolist()),
        fingerprint="made",
        images=HeldImages(fields),
    )


def _predict_made(*, signal, steps, seed=0):
    random = np.random.default_rng(4)
    sizes = {"train": 96, "validation": 64, "test": 128}
    necks = {name: _necks(random, size, signal=signal) for name, size in sizes.items()}
    return neck_predictions(necks, "test", steps=steps, seed=seed)


def _accuracy(predictions):
    return np.mean(predictions.predicted == predictions.labels)


@pytest.mark.exhaustive
def test_network_learns_what_is_in_the_neck():
    assert _accuracy(_predict_made(signal=True, steps=60)) > 0.9


@pytest.mark.exhaustive
def test_network_is_at_chance_where_the_neck_says_nothing():
    # Of 128 images with four labels, chance stays under 0.375 in 999 of 1000 cases.
    assert _accuracy(_predict_made(signal=False, steps=20)) < 0.375


@pytest.mark.exhaustive
def test_same_seed_gives_the_same_predictions_and_another_others():
    first, again, other = (
        _predict_made(signal=True, steps=3, seed=seed).probabilities for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_network_that_diverges_is_an_error_not_a_low_score(monkeypatch):
    broken = neck.neck_config(steps=2, seed=0)
    broken = broken.replaced({"optimizer.learning_rate": 1e30})
    monkeypatch.setattr(neck, "neck_config", lambda **_: broken)
    with pytest.raises(UserError, match="diverged"):
        _predict_made(signal=True, steps=2)


def test_facts_are_categories_of_the_training_images():
    random = np.random.default_rng(5)
    train = {
        "sex": np.array([b"F", b"M"])[random.integers(0, 2, 500)],
        "pixel_spacing_mm": random.normal(2.4, 0.1, 500),
    }
    table = fact_table(
        train,
        {
            "sex": np.array([b"M", b"F", b"A", b"Z"]),
            "pixel_spacing_mm": np.array([np.nan, 1.0, 2.4, 9.0]),
        },
    )
    assert table[:, 0].tolist() == [1, 0, -1, -1]
    assert table[[0, 1, 3], 1].tolist() == [-1, 0, 9]
    assert table[2, 1] in (4, 5)
    assert np.ptp(np.bincount(fact_table(train, train)[:, 1])) <= 1


@pytest.fixture(scope="module")
def inputs(data_dir):
    return {name: read_inputs(data_dir, name) for name in ("train", "validation", "test")}


def test_sights_are_those_of_the_records_in_their_order(data_dir, inputs):
    images = load_split(data_dir, "test", pool=16, cache_gib=1)
    batch = images.read(np.arange(len(images)))
    thumbnails = inputs["test"].thumbnails
    for name in ("counts", "scale", "label", "image_id", "patient_key"):
        np.testing.assert_array_equal(thumbnails[name], batch[name], err_msg=name)
    facts = inputs["test"].facts
    assert facts["total_counts"].tolist() == batch["counts"].sum((1, 2, 3)).tolist()
    assert (facts["view"] == batch["view"]).all()
    assert set(facts["sex"]) <= {b"F", b"M"}
    assert (np.abs(facts["body_height_mm"] - 1700) < 300).all()


def test_necks_are_normalised_by_themselves_alone(inputs):
    necks = inputs["test"].necks.read(np.arange(len(inputs["test"].necks)))
    above = (necks["counts"] > necks["scale"][:, None, None, None]).mean((1, 2, 3))
    assert (above > 0).all()
    assert (above <= 0.011).all()


def _accuracy_of_facts(inputs, facts_of):
    told = {
        name: dataclasses.replace(part, facts=facts_of(part.thumbnails["label"]))
        for name, part in inputs.items()
    }
    return (fact_predictions(told, "test") == inputs["test"].thumbnails["label"]).mean()


def test_facts_that_tell_the_class_are_found_out_and_others_are_not(inputs):
    assert _accuracy_of_facts(inputs, lambda labels: {"notes": np.array(CLASSES)[labels]}) == 1.0
    silent = _accuracy_of_facts(inputs, lambda labels: {"view": np.full(len(labels), "anterior")})
    test, train = (inputs[name].thumbnails["label"] for name in ("test", "train"))
    assert silent == (test == np.bincount(train).argmax()).mean()


def test_training_images_of_one_class_are_an_error(inputs):
    alone = dataclasses.replace(
        inputs["train"],
        thumbnails=inputs["train"].thumbnails | {"label": np.zeros(40, np.int32)},
    )
    with pytest.raises(UserError, match="of one class"):
        measure(inputs | {"train": alone}, "test")


def test_limit_is_reached_by_what_sees_pixels_only():
    accuracies = {"most frequent class": 0.9, "thumbnail": 0.6, "neck": 0.59, "facts": 0.95}
    report = {
        "shortcuts": [
            {"name": name, "scores": {"accuracy": value}} for name, value in accuracies.items()
        ]
    }
    assert reaching(report, 0.6) == ["thumbnail"]
    assert reaching(report, 0.61) == []
    assert reaching(report, 0.5) == ["thumbnail", "neck"]


def _command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "dscint_jax.baselines", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "COLUMNS": "160"},
    )


@pytest.mark.exhaustive
def test_command_prints_a_table_writes_json_and_leaves_the_data_alone(data_dir, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in data_dir.rglob("*")}
    out = tmp_path / "made" / "shortcuts.json"
    done = _command("--data_dir", data_dir, "--steps", 3, "--out", out, "--limit", 0.01)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    assert "limit 0.01 reached by: thumbnail, neck" in done.stdout
    report = json.loads(out.read_text())
    linear = linear_baseline(data_dir)
    thumbnail = report["shortcuts"][1]
    assert thumbnail["scores"] == linear.scores
    expected = {name: pair and list(pair) for name, pair in linear.intervals.items()}
    assert thumbnail["intervals"] == expected
    for shortcut in report["shortcuts"]:
        assert interval_in_words(shortcut["intervals"]["accuracy"]) in done.stdout
        assert f"{shortcut['scores']['accuracy']:.4f}" in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in data_dir.rglob("*")}


def test_help_is_printed_and_is_success():
    done = _command("--help")
    assert done.returncode == 0
    assert "usage: python -m dscint_jax.baselines" in done.stdout


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--data_dir", "none"], "none holds no data set"),
        ([], "--data_dir"),
        (["--data_dir", "DATA", "--split", "tset"], "'tset'"),
        (["--data_dir", "DATA", "--fold", "1"], "not divided into folds"),
        (["--data_dir", "DATA", "--limit", "60"], "--limit 60"),
        (["--data_dir", "DATA", "--steps", "0"], "--steps 0"),
        (["--data_dir", "DATA", "--seed", "-1"], "--seed -1"),
        (["--data_dir", "DATA", "--out", "."], "is a folder"),
    ],
)
def test_bad_input_is_refused_before_the_work(data_dir, monkeypatch, arguments, expected):
    monkeypatch.setattr(shortcuts, "measure", None)
    command = ["shortcuts", *(str(data_dir) if a == "DATA" else a for a in arguments)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(UserError) as error:
        main()
    assert expected in str(error.value)


def test_data_set_in_folds_asks_for_one(folds_dir):
    with pytest.raises(UserError, match="5 folds; give one with --fold, 0 to 4"):
        shortcuts.report_of(folds_dir, "test")
