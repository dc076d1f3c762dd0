"""Builds on an Apache Beam runner; needs the extra `beam`."""

import os
import subprocess
import sys

import pytest

from tfds_builder import build, staging
from tfds_builder.commandline.errors import UserError
from tfds_builder.shards import beam

IMPORT = [sys.executable, "-c", "import apache_beam"]
needs_beam = pytest.mark.skipif(
    os.environ.get("TESTS_WITHOUT_HINTS") != "1"
    or subprocess.run(IMPORT, capture_output=True, check=False).returncode != 0,
    reason="needs apache-beam and TESTS_WITHOUT_HINTS=1",
)
OPTIONS = "--direct_running_mode=multi_processing --direct_num_workers=2"


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@needs_beam
def test_a_runner_with_two_processes_writes_the_same_bytes(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("tfds_builder.shards.plan.ROWS_PER_SHARD", 4)
    manifest = cohort(12)
    with manifest.open("a") as file:
        file.write("scans/none.dcm,X,normal\n")
    places = ["--manifest", str(manifest), "--max_rejected", "0.2"]
    build.main([*places, "--data_dir", str(tmp_path / "pool")])
    runner = ["--beam_runner", "DirectRunner", "--beam_options", OPTIONS]
    build.main([*places, "--data_dir", str(tmp_path / "beam"), *runner])
    assert contents(tmp_path / "beam") == contents(tmp_path / "pool")
    assert not list(tmp_path.glob(".beam-tasks-*"))


@needs_beam
def test_what_a_runner_is_given_names_no_patient_in_the_data_directory(
    cohort, tmp_path, monkeypatch
):
    """As a killed build would leave it: nothing is tidied up."""
    monkeypatch.setattr(
        beam, "_taken_result", lambda task: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    monkeypatch.setattr(staging.shutil, "rmtree", lambda *_, **__: None)
    runner = ["--beam_runner", "DirectRunner", "--beam_options", OPTIONS]
    places = ["--manifest", str(cohort(4)), "--data_dir", str(tmp_path / "data")]
    with pytest.raises(KeyboardInterrupt):
        build.main([*places, *runner])
    left = contents(tmp_path / "data")
    assert any(name.endswith(".result") for name in left)
    for content in left.values():
        for word in (b"H-1", b".dcm", b"Doe", b"SIEMENS NM"):
            assert word not in content


@needs_beam
def test_an_unknown_runner_is_one_line_and_no_data_set(cohort, tmp_path):
    command = [sys.executable, "-m", "tfds_builder.build", "--manifest", cohort(4)]
    command += ["--data_dir", tmp_path / "data", "--beam_runner", "NoSuchRunner"]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2
    assert "error: the Beam pipeline failed on NoSuchRunner" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "data" / "scintigraphy").exists()


def test_without_beam_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"pip install .*\[beam\]"):
        next(beam.run_on_beam([], tmp_path, "DirectRunner", [], 30.0))
