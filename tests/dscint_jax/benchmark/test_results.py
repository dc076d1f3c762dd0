import dataclasses
import gzip
import json
import shutil
import sys

import numpy as np
import pytest

from dscint_jax.benchmark import verify as verification
from dscint_jax.benchmark.__main__ import main
from dscint_jax.benchmark.cells import FAILURE, folder_of, open_cells
from dscint_jax.benchmark.page import page_text
from dscint_jax.benchmark.plan import Cell
from dscint_jax.benchmark.results import PREDICTIONS, check_files, checksum, collect, place_of
from dscint_jax.compare import compare
from dscint_jax.metrics.scores import METRIC_NAMES
from tests.dscint_jax.benchmark.conftest import fill, make_cell
from tfds_builder.commandline.errors import UserError


@pytest.fixture
def out(filled):
    return filled / "results"


def read(out):
    return json.loads((out / "results.json").read_text())


def test_tables_are_those_of_compare_on_the_work_directories(plan, filled, out):
    runs = [
        folder_of(filled, cell)
        for name in plan.networks
        for cell in plan.cells(name, 1e-3)
        if cell.condition == "patient"
    ]
    expected = compare(runs)
    found = read(out)["tables"]["comparison"]["patient"]
    assert found["pairs"] == json.loads(json.dumps(expected["pairs"]))
    for ours, theirs in zip(found["networks"], expected["networks"], strict=True):
        assert ours["metrics"] == json.loads(json.dumps(theirs["metrics"]))
    assert found["pairs"][0]["metrics"]["accuracy"]["p_holm"] < 0.05


def test_leakage_is_the_difference_of_the_protocols_with_its_interval(out):
    results = read(out)
    for name, found in results["tables"]["leakage"].items():
        means = [
            next(n for n in results["tables"]["comparison"][c]["networks"] if n["name"] == name)
            for c in ("augmented", "patient")
        ]
        for metric in METRIC_NAMES:
            expected = means[0]["metrics"][metric]["mean"] - means[1]["metrics"][metric]["mean"]
            assert found[metric]["value"] == pytest.approx(expected)
            assert found[metric]["low"] < expected < found[metric]["high"]


def test_results_hold_what_a_rerun_needs_and_no_place_of_this_machine(filled, out):
    results = read(out)
    assert all(cell["status"] == "complete" for cell in results["cells"])
    assert results["cells"][0]["stack"]["processor"] == "Some CPU avx2"
    for path in out.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            text = gzip.decompress(content) if path.suffix == ".gz" else content
            assert str(filled).encode() not in text
    check_files(results, out)


@pytest.mark.parametrize("name", ["results.json", "config.json", "metrics.json", "predictions"])
def test_a_changed_file_is_found(out, name):
    results = read(out)
    place = out / place_of(results["cells"][0])
    path = {
        "results.json": out / name,
        "config.json": place / name,
        "metrics.json": place / "eval" / "test" / name,
        "predictions": place / PREDICTIONS,
    }[name]
    content = path.read_bytes()
    if name == "predictions":
        path.write_bytes(gzip.compress(gzip.decompress(content).replace(b"0.1", b"0.2", 1)))
    elif name == "results.json":
        path.write_bytes(content.replace(b"0", b"1", 1))
    else:
        path.write_bytes(content + b"\n")
    with pytest.raises(UserError, match=f"{path.name}.*checksum"):
        check_files(read(out), out)


def _doctor(results, what):
    cell = results["cells"][0]
    match what:
        case "metrics":
            cell["metrics"]["accuracy"] += 0.01
        case "tables":
            networks = results["tables"]["comparison"]["patient"]["networks"]
            networks[0]["metrics"]["accuracy"]["mean"] += 0.01
        case "rate":
            results["networks"][0]["learning_rate"] = 0.1
        case _:
            cell[what] = {"images_per_second": 9e9, "leakage": {"images": 1}, "git": "1" * 40}[what]


@pytest.mark.parametrize(
    "what", ["metrics", "tables", "rate", "images_per_second", "leakage", "git"]
)
def test_a_doctored_number_is_found_though_its_checksum_fits(out, what):
    results = read(out)
    _doctor(results, what)
    results["sha256"] = checksum(results)
    with pytest.raises(UserError, match=r"not its own|not follow"):
        check_files(results, out)


@pytest.fixture
def tuned(plan, tmp_path_factory):
    """Results of which the first of two learning rates is better, and was chosen."""
    workdir = tmp_path_factory.mktemp("tuned")
    plan = dataclasses.replace(plan, learning_rates=(1e-3, 1e-2))
    fill(plan, workdir)
    for name in plan.networks:
        _, worse = plan.trials(name)
        make_cell(plan, workdir, worse, 0.5)
        line = {"step": 1, "validation_f1": 0.25}
        (folder_of(workdir, worse) / "train_metrics.jsonl").write_text(json.dumps(line))
    collect(plan, workdir, workdir / "results")
    return workdir / "results"


def test_learning_rates_follow_from_their_trials(tuned):
    results = read(tuned)
    check_files(results, tuned)
    assert results["networks"][0]["validation_f1"] == [[1e-3, 0.5], [1e-2, 0.25]]
    results["networks"][0]["validation_f1"] = [[1e-3, 0.5], [1e-2, 0.99]]
    results["sha256"] = checksum(results)
    with pytest.raises(UserError, match="learning rate of dscint does not follow"):
        check_files(results, tuned)


def test_a_changed_file_of_a_trial_is_found(tuned):
    path = tuned / "cells/patient/alexnet/lr0.01/seed0/train_metrics.jsonl"
    path.write_text('{"step": 1, "validation_f1": 0.99}')
    with pytest.raises(UserError, match=r"lr0\.01.*checksum"):
        check_files(read(tuned), tuned)


def test_trials_that_were_not_run_are_open_on_the_page(plan, tmp_path):
    plan = dataclasses.replace(plan, learning_rates=(1e-3, 1e-2))
    results = collect(plan, tmp_path, tmp_path / "results")
    assert "| 0.001: open, 0.01: open |" in page_text(results)
    check_files(read(tmp_path / "results"), tmp_path / "results")


def test_what_another_processor_rounds_is_not_doctored(out):
    results = read(out)
    mean = results["tables"]["comparison"]["patient"]["networks"][0]["metrics"]["accuracy"]
    mean["mean"] *= 1 + 1e-14
    results["sha256"] = checksum(results)
    check_files(results, out)


def test_a_cell_of_another_plan_is_not_collected(plan, tmp_path):
    fill(plan, tmp_path)
    other = dataclasses.replace(
        plan, networks={**plan.networks, "dscint": {"label_smoothing": 0.1}}
    )
    with pytest.raises(
        UserError, match=r"config\.label_smoothing of dscint.* is 0\.0 there and 0\.1"
    ):
        collect(other, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_failed_and_open_cells_leave_the_others_whole(plan, filled):
    failed, missing = plan.cells("alexnet", 1e-3)[:2]
    (folder_of(filled, failed) / FAILURE).write_text("the loss is not finite\n")
    (folder_of(filled, missing) / "eval" / "test" / "metrics.json").unlink()
    results = collect(plan, filled, filled / "results")
    states = [cell["status"] for cell in results["cells"]]
    assert (states.count("failed"), states.count("open")) == (1, 1)
    page = page_text(results)
    assert "| alexnet/patient/0 | the loss is not finite |" in page
    assert "8 of 10 cells are complete, 1 failed" in page
    pair = results["tables"]["comparison"]["patient"]["pairs"][0]
    assert pair["metrics"]["accuracy"]["p"] is None
    assert pair["metrics"]["accuracy"]["low"] is not None


def test_a_benchmark_goes_on_from_a_copy_of_its_results(plan, out, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(out / "cells", copy / "cells")
    assert open_cells(plan, copy) == []
    collect(plan, copy, copy / "results")
    assert read(copy / "results") == read(out)
    check_files(read(copy / "results"), copy / "results")


def test_a_network_that_cannot_be_made_has_a_row_without_its_cost(plan, tmp_path):
    broken = {"alexnet": {"model_options": {"dtype": "float13"}}}
    plan = dataclasses.replace(plan, networks={"dscint": {}, **broken})
    page = page_text(collect(plan, tmp_path, tmp_path / "results"))
    assert "| AlexNet |  |  |  | 0.001 |  |" in page


def test_an_empty_benchmark_has_a_page_too(plan, tmp_path):
    results = collect(plan, tmp_path, tmp_path / "results")
    assert "0 of 10 cells are complete." in page_text(results)
    check_files(read(tmp_path / "results"), tmp_path / "results")


def test_the_page_shows_every_table(plan, out):
    page = page_text(read(out))
    for words in (
        "| Dscint | 0.",
        "published Dscint, other data | 0.9801",
        "Leakage: protocol augmented minus patient",
        "Dscint minus the others, augmented",
        "Dscint is number 1 of 2 by mean accuracy.",
        "| no attention |",
        "nonfixed places (mean)",
        "Measured on: Some CPU avx2, 2 cores, jaxlib 1.2.3.",
    ):
        assert words in page
    accuracy = np.mean(
        [
            cell["metrics"]["accuracy"]
            for cell in read(out)["cells"]
            if (cell["name"], cell["condition"]) == ("alexnet", "patient")
        ]
    )
    assert f"| AlexNet | {accuracy:.4f} ±" in page


@pytest.fixture
def rerun(plan, out, tmp_path_factory, monkeypatch):
    """Checks the first cell against a rerun that the test makes up."""
    elsewhere = tmp_path_factory.mktemp("rerun")

    def run(skill_change=0.0, change=lambda results: None, **provenance):
        fill(plan, elsewhere, **provenance)
        workdir = folder_of(elsewhere, Cell("dscint", "patient", 1e-3, 0))
        if skill_change:
            other = folder_of(elsewhere, Cell("alexnet", "patient", 1e-3, 0))
            for name in ("metrics.json", "predictions.csv"):
                place = workdir / "eval" / "test" / name
                place.write_bytes((other / "eval" / "test" / name).read_bytes())
        results = read(out)
        change(results)
        verification._compare(results["cells"][0], results, workdir)

    return run


def test_the_same_bits_are_reproduced(rerun, capsys):
    rerun()
    assert "reproduced bit for bit" in capsys.readouterr().out


def test_other_bits_on_the_same_stack_are_an_error(rerun):
    with pytest.raises(UserError, match="other predictions with the same code"):
        rerun(skill_change=1.0)


@pytest.mark.parametrize("other", [{"processor": "Another CPU"}, {"git": "another commit"}])
def test_another_score_on_another_machine_or_of_other_code_is_an_error(rerun, other):
    with pytest.raises(UserError, match=r"accuracy is .* in the results"):
        rerun(skill_change=1.0, **other)


def test_one_seed_does_not_judge_a_rerun_of_other_bits(rerun, capsys):
    def alone(results):
        results["cells"] = [cell for cell in results["cells"] if cell["seed"] == 0]

    rerun(1.0, alone, processor="Another CPU", git=f"{'0' * 40}+changes")
    told = capsys.readouterr().out
    assert "cannot be judged: one seed" in told
    assert "processor, commit (0000000 then, 0000000+changes now)" in told


@pytest.mark.parametrize("damage", [lambda c: c[:-9], lambda c: c[:40] + b"x" + c[41:]])
def test_damaged_predictions_are_named(plan, filled, out, damage):
    results = read(out)
    path = out / place_of(results["cells"][0]) / PREDICTIONS
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"predictions\.csv\.gz cannot be read"):
        check_files(results, out)
    # As from a copy of published results, which have no other predictions.
    shutil.rmtree(filled / "cells")
    shutil.copytree(out / "cells", filled / "cells")
    with pytest.raises(UserError, match=r"predictions\.csv\.gz cannot be read"):
        collect(plan, filled, filled / "again")


def test_verification_needs_the_data_set(out, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--verify", str(out / "results.json")])
    with pytest.raises(UserError, match="--data_dir is missing"):
        main()


def test_metrics_that_some_seeds_lack_are_left_out(rerun, capsys):
    def without_specificity(results):
        for cell in results["cells"]:
            cell["metrics"]["specificity"] = None
        results["cells"][0]["sha256"]["predictions"] = "others"

    rerun(0.0, without_specificity, processor="Another CPU")
    assert "reproduced within 3 standard deviations" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{}", "[]", '{"cells": [{}]}'])
def test_what_is_no_results_file_is_named(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results\.json"):
        verification.verify(tmp_path / "results.json", None, tmp_path, tmp_path)
