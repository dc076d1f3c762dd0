"""From counts to probabilities: as the evaluation, in onnxruntime, and without Flax."""

import csv
import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from dscint_jax import models
from dscint_jax.config import STUDIES, Config
from dscint_jax.evaluate.evaluate import evaluate
from dscint_jax.export import onnx_graph
from dscint_jax.export.from_counts import COLUMNS, ROWS, bright_level, reading
from dscint_jax.export.model_file import export
from dscint_jax.export.onnx_graph import onnx_model
from dscint_jax.input_pipeline.dataset import open_dataset
from dscint_jax.run.workdir import config_of
from dscint_jax.training.experiment import make_experiment
from tfds_builder.commandline.errors import UserError
from tfds_builder.studies.study import intensity_scale

DAILY = ("dscint", "dual_view")

NETWORKS = [
    name if name in DAILY else pytest.param(name, marks=pytest.mark.exhaustive)
    for name in models.NETWORKS
]


TEMPERATURES = {"resnet101": 100.0, "inception_v4": 10.0, "vgg19_bn": 0.02}
"""Of networks whose logits with random weights lie far apart, or hardly differ; else 0.25."""


def _counts(number, views=()):
    random = np.random.default_rng(number)
    body = np.zeros((ROWS, COLUMNS))
    body[80:950, 60:200] = random.uniform(0.2, 8)
    body[300:320, 100:120] = 150
    return random.poisson(np.broadcast_to(body, (*views, ROWS, COLUMNS))).astype(np.int32)


def _runtime(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def test_bright_level_is_that_of_the_data_set():
    random = np.random.default_rng(0)
    images = [_counts(n) for n in range(4)]
    images += [np.zeros((ROWS, COLUMNS), np.int32), random.integers(0, 65535, (ROWS, COLUMNS))]
    for share in (1e-5, 1e-4, 1e-3):
        images.append((random.random((ROWS, COLUMNS)) < share).astype(np.int32))
    images = np.stack(images).astype(np.int32)
    found = bright_level(jnp.asarray(images, jnp.float32))
    expected = [intensity_scale(image) for image in images]
    np.testing.assert_allclose(found, expected, rtol=2e-6)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NETWORKS)
def test_graph_computes_what_the_network_does_for_any_number_of_images(name):
    records = getattr(models.NETWORKS[name], "RECORDS", "views")
    config = Config(steps=1, model=name, model_options=models.complete_options(name, {})).replaced(
        {"data.records": records}
    )
    experiment = make_experiment(config, (1,) * 4)
    state = experiment.initial_state()
    temperature = TEMPERATURES.get(name, 0.25)
    function = reading(experiment, state.params, state.batch_stats, pool=8, temperature=temperature)
    views = (2,) if records == STUDIES else ()
    model = onnx_model(function, (*views, ROWS, COLUMNS), np.int32, {})
    session = _runtime(model)
    counts = np.stack([_counts(n, views) for n in range(3)])
    if views:
        counts[1, 0] = 0
    found = session.run(None, {"counts": counts})[0]
    expected = np.asarray(jax.jit(function)(counts))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # Random weights may be very sure.
    np.testing.assert_allclose(np.log(found), np.log(expected), atol=0.01)
    assert np.ptp(np.log(found), 0).max() > 1e-3
    np.testing.assert_allclose(session.run(None, {"counts": counts[1:2]})[0], found[1:2], atol=1e-5)


def test_operation_that_is_not_known_is_named():
    with pytest.raises(UserError, match="operation 'sin' of JAX"):
        onnx_model(jnp.sin, (4,), np.float32, {})
    with pytest.raises(UserError, match="padding between values"):
        onnx_model(lambda x: jax.lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1))), (4,), np.float32, {})


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """A run's counts at the test split, their probabilities by evaluation, and the temperature."""
    workdir = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(trained, workdir)
    result = evaluate(workdir, split="test", checkpoint="best")
    with (workdir / "eval" / "test" / "predictions.csv").open(newline="") as file:
        rows = {row["image_id"]: row for row in csv.DictReader(file)}
    config = config_of(workdir)
    source = open_dataset(Path(config.data.dir), config.data.records).as_data_source(split="test")
    counts, chances = [], []
    for record in source:
        row = rows[record["image_id"].decode()]
        counts.append(record["image"][..., 0])
        chances.append([float(v) for name, v in row.items() if name.startswith("p_")])
    return workdir, np.stack(counts).astype(np.int32), np.array(chances), result


def _calibrated(chances, result):
    logits = np.log(chances) / result["calibration"]["temperature"]
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def test_onnx_file_gives_the_calibrated_probabilities_of_the_evaluation(evaluated, tmp_path):
    workdir, counts, chances, result = evaluated
    out = tmp_path / "dscint.onnx"
    said = export(workdir, out, format="onnx")
    assert "not calibrated" not in said
    found = _runtime(out.read_bytes()).run(None, {"counts": counts})[0]
    np.testing.assert_allclose(found, _calibrated(chances, result), atol=1e-5)
    metadata = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert json.loads(metadata["classes"])[0] == "normal"
    assert metadata["temperature"] == str(result["calibration"]["temperature"])
    assert "research only" in metadata["use"]
    points = {str(p["accuracy_target"]): p["least_confidence"] for p in result["answers"]}
    assert json.loads(metadata["least_confidence"]) == points
    assert f"accuracy {result['accuracy']:.3f} (" in metadata["card"]
    assert metadata["card"].count("counts int32 (batch, 1024, 256)") == 1
    first = out.read_bytes()
    export(workdir, out, format="onnx", overwrite=True)
    assert out.read_bytes() == first


WITHOUT_FLAX = """
import sys, zipfile
sys.modules["flax"] = sys.modules["dscint_jax"] = None
import jax, numpy as np
from jax import export
model = export.deserialize(bytearray(zipfile.ZipFile(sys.argv[1]).read("model")))
np.save(sys.argv[3], model.call(np.load(sys.argv[2])))
"""


def test_stablehlo_file_runs_without_flax(evaluated, tmp_path):
    workdir, counts, chances, result = evaluated
    out = tmp_path / "dscint.stablehlo"
    export(workdir, out, format="stablehlo")
    np.save(tmp_path / "counts.npy", counts)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FLAX, out, tmp_path / "counts.npy", tmp_path / "found.npy"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npy")
    np.testing.assert_allclose(found, _calibrated(chances, result), atol=1e-5)
    metadata = json.loads(zipfile.ZipFile(io.BytesIO(out.read_bytes())).read("metadata.json"))
    assert metadata["network"] == "dscint"


def test_checkpoint_that_was_not_evaluated_is_written_and_said_to_be_uncalibrated(
    trained, tmp_path
):
    assert "not calibrated: evaluate" in export(trained, tmp_path / "d.onnx", format="onnx")


def test_missing_package_is_named(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dscint_jax.export.onnx_graph", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"pip install -c constraints\.txt '\.\[onnx\]'$"):
        export(trained, tmp_path / "d.onnx", format="onnx")


def test_format_and_ending_fit_and_too_large_a_graph_is_refused(trained, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"must end in \.onnx"):
        export(trained, tmp_path / "d.safetensors", format="onnx")
    with pytest.raises(UserError, match="--format pt is none of safetensors"):
        export(trained, tmp_path / "d.pt", format="pt")
    monkeypatch.setattr(onnx_graph, "LARGEST", 100)
    with pytest.raises(UserError, match="2 GiB"):
        export(trained, tmp_path / "d.onnx", format="onnx")
    assert not (tmp_path / "d.onnx").exists()
