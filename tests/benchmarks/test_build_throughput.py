import re

import pytest

from tests.benchmarks import build_throughput as throughput
from tests.tfds_builder.conftest import (  # noqa: F401 - fixtures
    cohort,
    draw_body,
    rng,
    write_dicom,
    write_manifest,
)
from tfds_builder.commandline.errors import UserError


def test_builds_are_timed_beside_bare_decoding_and_writing(cohort, tmp_path, capsys):
    options = ["--rounds", "1", "--workers", "2", "--repeat", "2", "--scratch", str(tmp_path)]
    throughput.main(["--manifest", str(cohort(4)), *options])
    said = capsys.readouterr().out
    speeds = r"build with 2 workers \d+ images/s; .* one process \d+ .* in 2 processes \d+"
    assert re.search(f"round 1: {speeds}", said)
    assert re.search(f"median of 1: {speeds}", said)
    assert "16 images; memory" in said
    memory = re.search(r"memory of the build (\d+) MiB, of its largest worker (\d+) MiB", said)
    assert all(20 < int(mib) < 2000 for mib in memory.groups())
    assert not list(tmp_path.glob("throughput-*"))


def test_files_that_the_build_leaves_out_cannot_be_measured(cohort, write_manifest, tmp_path):
    manifest = cohort(30)
    with manifest.open("a") as file:
        file.write("scans/none.dcm,X,normal\n")
    with pytest.raises(UserError, match="is not there"):
        throughput.main(["--manifest", str(manifest), "--scratch", str(tmp_path)])
