"""The page in a browser: skips where node, playwright-core, axe-core or Chromium are missing."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dscint_jax.evaluate.evaluate import evaluate
from dscint_jax.metrics.predictions import read_predictions
from dscint_jax.report.gallery import cases_of
from dscint_jax.report.page import write_report

NODE, CHROMIUM = shutil.which("node"), shutil.which("chromium")


def _has_packages():
    if not NODE:
        return False
    script = "require('playwright-core'); require('axe-core')"
    return subprocess.run([NODE, "-e", script], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def browsed(trained, tmp_path_factory):
    if not CHROMIUM or not _has_packages():
        pytest.skip("needs node, chromium, and playwright-core and axe-core on NODE_PATH")
    workdir = tmp_path_factory.mktemp("browsed") / "run"
    shutil.copytree(trained, workdir)
    evaluate(workdir, split="train", checkpoint="best")
    page, _ = write_report(workdir, split="train")
    script = Path(__file__).with_name("browse.cjs")
    pictures = [os.environ["SCREENSHOTS"]] if "SCREENSHOTS" in os.environ else []
    command = [NODE, str(script), str(page), CHROMIUM, *pictures]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    cases = cases_of(read_predictions(workdir / "eval" / "train" / "predictions.csv"))
    return json.loads(done.stdout), cases


@pytest.mark.slow
def test_page_works_at_two_widths_in_light_and_dark(browsed):
    looks, cases = browsed
    assert [(look["width"], look["colorScheme"]) for look in looks] == [
        (1280, "light"),
        (1280, "dark"),
        (390, "light"),
        (390, "dark"),
    ]
    wrong = sum(not case.right for case in cases)
    for look in looks:
        assert look["errors"] == []
        assert look["requests"] == []
        assert look["overflow"] <= 0
        assert look["overflowAfter"] <= 0
        assert look["all"] == len(cases)
        assert look["wrong"] == wrong
        assert look["count"] == f"{wrong} of {len(cases)} studies"
        expected = sorted((case.confidence for case in cases), reverse=True)
        assert look["falling"] == pytest.approx(expected, abs=0.0051)
        assert look["windowChanges"]
        assert look["opacityChanges"]


@pytest.mark.slow
def test_pictures_are_painted_when_they_come_into_view(browsed):
    for look in browsed[0]:
        assert look["paintedBefore"] == 0
        assert look["paintedAfter"] > 0


@pytest.mark.slow
def test_keys_move_find_and_hide_the_map(browsed):
    for look in browsed[0]:
        assert look["focused"] == 2
        assert look["pressed"] == 1
        assert look["opacity"] == "0"
        assert (look["typed"], look["none"]) == ("no such study", 0)
        assert look["left"]
        assert look["restored"] == look["all"]


@pytest.mark.slow
def test_axe_finds_no_serious_fault(browsed):
    assert [look["faults"] for look in browsed[0]] == [[]] * 4
