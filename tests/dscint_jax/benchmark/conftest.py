import dataclasses
import json
import shutil

import numpy as np
import pytest

from dscint_jax.benchmark.cells import folder_of
from dscint_jax.benchmark.plan import Benchmark
from dscint_jax.benchmark.results import collect
from dscint_jax.metrics.predictions import predictions_text
from tests.dscint_jax.conftest import load_tiny_config
from tests.dscint_jax.metrics.test_predictions import some_predictions

CLASSES = ("normal", "metastasis", "arthritis", "thyroid_carcinoma")


@pytest.fixture(scope="session")
def plan():
    """Two networks, an ablation, two protocols, two seeds."""
    return Benchmark(
        base=load_tiny_config(),
        networks={"dscint": {}, "alexnet": {"model_options": {}}},
        ablations={"no_attention": {"model_options.attention": "none"}},
        conditions={"patient": {}, "augmented": {"protocol": "augmented"}},
        learning_rates=(1e-3,),
        seeds=(0, 1),
    )


def make_cell(plan, workdir, cell, skill, *, patients=40, **provenance):
    """What the run of a cell leaves, without a training."""
    folder, config = folder_of(workdir, cell), plan.config(cell)
    images = some_predictions(0, patients, CLASSES)
    random = np.random.default_rng([cell.seed, *cell.name.encode()])
    logits = random.normal(size=images.probabilities.shape) + skill * np.eye(4)[images.labels]
    odds = np.exp(logits)
    probabilities = odds / odds.sum(1, keepdims=True)
    predictions = dataclasses.replace(
        images, probabilities=probabilities, predicted=probabilities.argmax(1)
    )
    result = {"dataset_fingerprint": "f" * 64, "leakage": None, "step": int(config.steps)}
    attempt = {
        "dataset_fingerprint": "f" * 64,
        "git": "0" * 40,
        "arguments": ["--workdir", str(workdir)],
        "versions": {"jaxlib": "1.2.3"},
        "python": "3.11.7",
        "processor": "Some CPU avx2",
        "cores": 2,
        "devices": ["cpu"],
        "device_count": 1,
        "xla_flags": "",
        "ended": {"why": "completed", "step": int(config.steps)},
        **provenance,
    }
    speed = [{"step": n, "images_per_second": 100.0 + n} for n in range(4)]
    test = folder / "eval" / "test"
    test.mkdir(parents=True)
    (test / "predictions.csv").write_text(predictions_text(predictions))
    for path, value in (
        (folder / "benchmark.json", config.to_dict()),
        (folder / "config.json", config.to_dict()),
        (folder / "provenance.json", [attempt]),
        (test / "metrics.json", result),
    ):
        path.write_text(json.dumps(value))
    line = {"step": int(config.steps), "validation_f1": 0.5}
    (folder / "train_metrics.jsonl").write_text(json.dumps(line))
    (folder / "train_speed.jsonl").write_text("\n".join(map(json.dumps, speed)))


def fill(plan, workdir, **provenance):
    """All cells of a plan: Dscint reads best, and best of all where copies were trained on."""
    for name, skill in (("dscint", 2.5), ("alexnet", 1.0), ("no_attention", 2.2)):
        for cell in plan.cells(name, plan.learning_rates[0]):
            leak = 2.0 * (cell.condition == "augmented")
            patients = 56 if leak else 40
            make_cell(plan, workdir, cell, skill + leak, patients=patients, **provenance)


@pytest.fixture(scope="session")
def whole(plan, tmp_path_factory):
    """A benchmark that is complete, with its results."""
    folder = tmp_path_factory.mktemp("whole")
    fill(plan, folder)
    collect(plan, folder, folder / "results")
    return folder


@pytest.fixture
def filled(whole, tmp_path):
    """A copy of it, to be changed."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path
