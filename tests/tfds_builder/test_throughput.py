import re

import pytest

from tfds_builder import throughput
from tfds_builder.errors import DataError


def test_builds_are_timed_beside_bare_decoding_and_writing(cohort, tmp_path, capsys):
    options = ["--rounds", "1", "--workers", "1", "--repeat", "2", "--scratch", str(tmp_path)]
    throughput.main(["--manifest", str(cohort(4)), *options])
    said = capsys.readouterr().out
    assert re.search(r"round 1: bare \d+ images/s, build \d+ images/s, ratio of times \d", said)
    assert "16 images, 1 processes: build" in said
    memory = re.search(r"memory of the build (\d+) MiB, of its largest worker (\d+) MiB", said)
    assert all(20 < int(mib) < 2000 for mib in memory.groups())
    assert not list(tmp_path.glob("throughput-*"))


def test_files_that_the_build_leaves_out_cannot_be_measured(cohort, write_manifest, tmp_path):
    manifest = cohort(30)
    with manifest.open("a") as file:
        file.write("scans/none.dcm,X,normal\n")
    with pytest.raises(DataError, match="is not there"):
        throughput.main(["--manifest", str(manifest), "--scratch", str(tmp_path)])
