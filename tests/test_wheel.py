import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """What the wheel installs, in a folder of its own; the packages it needs are those here."""
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy of what git holds, so that nothing of an earlier build is taken along.
    source = folder / "source"
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, files.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((PROJECT / name).read_bytes())
    _check(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def _check(*words):
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr


def _run(site, folder, *words):
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_wheel_holds_the_packages_and_nothing_beside_them(site):
    names = {path.name for path in site.iterdir()}
    assert {name for name in names if not name.endswith(".dist-info")} == {
        "dscint_jax",
        "tfds_builder",
    }
    for config in (PROJECT / "configs").glob("*.py"):
        assert (site / "dscint_jax/configs" / config.name).read_bytes() == config.read_bytes()
    report = PROJECT / "dscint_jax" / "report"
    data = [*(report / "template").iterdir(), *(report / "checklists").iterdir()]
    data += (PROJECT / "dscint_jax" / "predict" / "template").iterdir()
    assert len(data) == 14
    for file in data:
        assert (site / file.relative_to(PROJECT)).read_bytes() == file.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("config", ["configs/dscint.py:vgg16", "configs/quickstart.py"])
def test_installed_command_finds_the_shipped_config_from_any_folder(site, tmp_path, config):
    words = ("--config", config, "--workdir", "r", "--config.data.dir=none")
    done = _run(site, tmp_path, "dscint_jax.main", *words)
    assert done.stderr.startswith(f"error: {tmp_path / 'none'} holds no data set"), done.stderr
    assert not list(tmp_path.iterdir())
