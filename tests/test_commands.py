"""The commands as a user types them: in processes of their own, on a small cohort."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TINY = Path(__file__).parent / "tiny.py"
STEPS = ("--config.steps=4", "--config.evaluate_every=2")

# Stands in for TensorFlow, installed or not: every import of it leaves a trace.
FAKE_TENSORFLOW = """
import os, traceback
with open(os.environ["TENSORFLOW_TRACE"], "a") as file:
    traceback.print_stack(file=file)
raise ImportError("this is not TensorFlow")
"""


def _run(module, *arguments, environment=None):
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, **(environment or {})},
    )


@pytest.fixture(scope="module")
def beginning(tmp_path_factory):
    """Phantoms, their data set, a run."""
    return _commands(tmp_path_factory.mktemp("path"), slice(3))


@pytest.fixture(scope="module")
def whole_path(beginning, tmp_path_factory):
    """All seven commands, one after the other, and where TensorFlow's imports left their trace."""
    folder = tmp_path_factory.mktemp("whole") / "path"
    shutil.copytree(beginning, folder)
    return _commands(folder, slice(3, None)), folder / "trace.txt"


def _commands(folder, chosen):
    (folder / "fake" / "tensorflow").mkdir(parents=True, exist_ok=True)
    (folder / "fake" / "tensorflow" / "__init__.py").write_text(FAKE_TENSORFLOW)
    trace = folder / "trace.txt"
    environment = {"PYTHONPATH": str(folder / "fake"), "TENSORFLOW_TRACE": str(trace)}
    data, workdir = folder / "data", folder / "run"
    training = ("--config", TINY, "--workdir", workdir, f"--config.data.dir={data}", *STEPS)
    commands = (
        ("tfds_builder.phantom", "--out", folder / "phantom", "--patients", 24, "--seed", 3),
        ("tfds_builder.build", "--manifest", folder / "phantom/manifest.csv", "--data_dir", data),
        ("dscint_jax.main", *training),
        ("dscint_jax.evaluate", "--workdir", workdir),
        ("dscint_jax.explain", "--workdir", workdir, "--limit", 6),
        ("dscint_jax.report", "--workdir", workdir),
        ("dscint_jax.export", "--workdir", workdir, "--out", folder / "dscint.safetensors"),
    )
    for module, *arguments in commands[chosen]:
        done = _run(module, *arguments, environment=environment)
        assert done.returncode == 0, f"{module}: {done.stderr}"
        assert done.stderr == "", f"{module}: {done.stderr}"
    return folder


@pytest.mark.exhaustive
def test_whole_path_leaves_metrics_predictions_and_a_page(whole_path):
    workdir = whole_path[0] / "run"
    metrics = json.loads((workdir / "eval" / "test" / "metrics.json").read_text())
    rows = (workdir / "eval" / "test" / "predictions.csv").read_text().splitlines()
    assert len(rows) == metrics["support"] + 1
    assert rows[0].startswith("image_id,patient_key,study_key,")
    assert ",label,predicted,p_normal,p_metastasis," in rows[0]
    assert "</html>" in (workdir / "report" / "index.html").read_text()


@pytest.mark.exhaustive
def test_no_command_imports_tensorflow(whole_path):
    trace = whole_path[1]
    assert not trace.exists(), trace.read_text()


@pytest.mark.exhaustive
def test_finished_steps_are_kept_when_the_path_is_run_again(whole_path):
    folder = whole_path[0]
    built = _run(
        *("tfds_builder.build", "--manifest", folder / "phantom/manifest.csv"),
        *("--data_dir", folder / "data"),
    )
    assert built.returncode == 0, built.stderr
    trained = _run(
        *("dscint_jax.main", "--config", TINY, "--workdir", folder / "run", *STEPS),
        f"--config.data.dir={folder / 'data'}",
    )
    assert trained.returncode == 0, trained.stderr
    assert "training is complete" in trained.stdout


@pytest.mark.parametrize(
    "module",
    [
        *("tfds_builder.phantom", "tfds_builder.scan", "tfds_builder.build"),
        *("tfds_builder.inspect", "tests.benchmarks.build_throughput", "tests.fuzz"),
        *("tests.phantom_checks", "tests.phantom_checks.oracle", "dscint_jax.baselines"),
        *("dscint_jax.main", "dscint_jax.evaluate", "dscint_jax.report"),
        *("dscint_jax.models", "dscint_jax.export", "dscint_jax.explain", "dscint_jax.throughput"),
    ],
)
def test_help_is_printed_and_is_success(module):
    done = _run(module, "--help")
    assert done.returncode == 0
    assert "usage: python -m" in done.stdout


def _manifest(folder, change):
    """A copy of the cohort's manifest with one thing wrong, beside the same files."""
    lines = (folder / "phantom" / "manifest.csv").read_text().splitlines()
    path = folder / "phantom" / "changed.csv"
    path.write_text("\n".join(change(lines)) + "\n")
    return path


def _build(change):
    def command(folder):
        manifest = _manifest(folder, change)
        return "tfds_builder.build", "--manifest", manifest, "--data_dir", folder / "new"

    return command


def _train(*arguments, data="data", workdir="new"):
    def command(folder):
        return (
            *("dscint_jax.main", "--config", TINY, "--workdir", folder / workdir),
            *(f"--config.data.dir={folder / data}", *STEPS, *arguments),
        )

    return command


def _without_label(lines):
    return [",".join(line.split(",")[:2]) for line in lines]


def _unknown_label(lines):
    return [*lines[:3], lines[3].replace(lines[3].split(",")[2], "metastasiss"), *lines[4:]]


def _torn_patient(lines):
    first = [line.split(",")[0] for line in lines[1:3]]
    return ["path,patient_id,label,split"] + [
        f"{path},P-1,normal,{split}" for path, split in zip(first, ("train", "test"), strict=True)
    ]


def _not_dicom(lines):
    return ["path,patient_id,label", "phantom.json,P-1,normal"]


BAD_INPUT = {
    "missing manifest": (
        lambda f: ("tfds_builder.build", "--manifest", f / "none.csv", "--data_dir", f / "new"),
        ["none.csv"],
    ),
    "no folder to scan": (
        lambda f: ("tfds_builder.scan", f / "none", "--out", f / "new.csv"),
        ["none"],
    ),
    "nothing to inspect": (
        lambda f: ("tfds_builder.inspect", "--data_dir", f / "new"),
        ["holds no data set", "tfds_builder.build"],
    ),
    "missing column": (_build(_without_label), ["changed.csv", "label"]),
    "unknown label": (_build(_unknown_label), ["row 4", "'metastasiss'", "metastasis"]),
    "patient in two splits": (_build(_torn_patient), ["row 3", "row 2", "train", "test"]),
    "not DICOM": (_build(_not_dicom), ["row 2", "not a DICOM file", "quarantine.csv"]),
    "no data set": (_train(data="nothing"), ["nothing", "tfds_builder.build"]),
    "unknown field": (_train("--config.step=3"), ["'step'", "'config.steps'"]),
    "another config": (_train("--config.seed=5", workdir="run"), ["config.seed is 0 there"]),
    "option without value": (
        lambda f: ("dscint_jax.evaluate", "--workdir"),
        ["--workdir"],
    ),
    "no run": (lambda f: ("dscint_jax.evaluate", "--workdir", f / "new"), ["config.json"]),
    "no weights": (
        _train("--config.init_from=none.safetensors"),
        ["none.safetensors is missing"],
    ),
    "export over a file": (
        lambda f: (
            *("dscint_jax.export", "--workdir", f / "run"),
            *("--out", f / "dscint.safetensors"),
        ),
        ["dscint.safetensors exists", "--overwrite"],
    ),
    "no run to export": (
        lambda f: ("dscint_jax.export", "--workdir", f / "new", "--out", f / "w.safetensors"),
        ["config.json"],
    ),
    "nothing to explain": (
        lambda f: ("dscint_jax.explain", "--workdir", f / "run", "--limit", 0),
        ["--limit 0"],
    ),
    "no such network": (
        lambda f: ("dscint_jax.models", "--network", "dscnt"),
        ["dscnt", "resnet18"],
    ),
    "not evaluated": (
        lambda f: ("dscint_jax.report", "--workdir", f / "run", "--split", "train"),
        ["dscint_jax.evaluate"],
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_exit_2_and_nothing_written(beginning, tmp_path, case):
    folder = tmp_path / "copy"
    shutil.copytree(beginning, folder, ignore=shutil.ignore_patterns("tensorboard"))
    (folder / "dscint.safetensors").touch()
    command, expected = BAD_INPUT[case]
    arguments = command(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    done = _run(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for word in expected:
        assert word in done.stderr
    # The one thing that a failed build leaves is the list of files that it could not use.
    (folder / "new" / "quarantine.csv").unlink(missing_ok=True)
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert before == after
    assert not (folder / "new" / "scintigraphy").exists()
    assert not (folder / "new" / "config.json").exists()
