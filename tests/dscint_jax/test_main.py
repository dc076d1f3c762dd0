import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from dscint_jax import models, saved_config
from dscint_jax.config import check_config
from dscint_jax.errors import DscintError
from dscint_jax.main import _with_network, _with_saved_config, _with_shipped_config
from dscint_jax.workdir import claim

from .conftest import load_tiny_config

CONFIGS = Path(__file__).parent.parent.parent / "configs"


def _config(file, network):
    spec = importlib.util.spec_from_file_location(file, CONFIGS / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(network)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--config", "{c}"], ["--config", "{c}"]),
        (["--config={c}", "--config.model=vgg16"], ["--config={c}:vgg16", "--config.model=vgg16"]),
        (
            ["--config", "{c}", "--config.model=own:build"],
            ["--config", "{c}:own:build", "--config.model=own:build"],
        ),
        (
            ["--config", "{c}", "--config.model", "vgg16"],
            ["--config", "{c}:vgg16", "--config.model", "vgg16"],
        ),
        (
            ["--config={c}:vgg16", "--config.model=vgg16"],
            ["--config={c}:vgg16", "--config.model=vgg16"],
        ),
        (["--config", "{c}:vgg16"], ["--config", "{c}:vgg16"]),
        (["--config", "{o}", "--config.model=vgg16"], ["--config", "{o}", "--config.model=vgg16"]),
        (["--config={p}", "--config.model=vgg16"], ["--config={p}:vgg16", "--config.model=vgg16"]),
        (["--config", "none.py", "--config.model=a"], ["--config", "none.py", "--config.model=a"]),
    ],
)
def test_network_named_as_a_field_is_handed_to_a_config_that_takes_one(given, expected, tmp_path):
    own = tmp_path / "own.py"
    own.write_text("def get_config():\n    return None\n")
    folder = tmp_path / "dscint.pytorch"
    folder.mkdir()
    (folder / "own.py").write_text("def get_config(network):\n    return None\n")
    places = {"c": CONFIGS / "dscint.py", "o": own, "p": folder / "own.py"}
    found = _with_network([text.format(**places) for text in given])
    assert found == [text.format(**places) for text in expected]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("configs/dscint.py", "{shipped}/dscint.py"),
        ("./configs/dscint.py", "{shipped}/dscint.py"),
        ("configs/quickstart.py:vgg16", "{shipped}/quickstart.py:vgg16"),
        ("configs/dscint.py:own:build", "{shipped}/dscint.py:own:build"),
        ("configs/dscint.py:", "{shipped}/dscint.py:"),
    ],
)
def test_shipped_config_is_found_from_any_folder(tmp_path, monkeypatch, given, expected):
    monkeypatch.chdir(tmp_path)
    expected = expected.format(shipped=CONFIGS)
    assert _with_shipped_config(["--config", given]) == ["--config", expected]
    assert _with_shipped_config([f"--config={given}"]) == [f"--config={expected}"]


def test_config_whose_path_would_be_cut_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "a:b"
    folder.mkdir()
    (folder / "own.py").write_text((CONFIGS / "dscint.py").read_text())
    with pytest.raises(DscintError, match=r"a:b/own\.py: what follows a colon is taken"):
        _with_shipped_config(["--config", f"{folder}/own.py"])
    monkeypatch.chdir(folder)
    assert _with_shipped_config(["--config=own.py:vgg16"]) == ["--config=own.py:vgg16"]


def test_config_of_ones_own_is_the_one_that_is_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "dscint.py").touch()
    argv = ["--config", "configs/dscint.py:vgg16"]
    assert _with_shipped_config(argv) == argv


@pytest.mark.parametrize("name", ["configs/none.py", "dscint.py", "my/configs/dscint.py"])
def test_config_that_is_not_there_is_named_with_those_that_are(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DscintError, match=f"--config {name}: .* shipped are configs/dscint.py, "):
        _with_shipped_config(["--config", name])


def test_two_names_for_the_network_are_told_apart():
    path = CONFIGS / "dscint.py"
    with pytest.raises(DscintError, match=r"the network dual_view and --config\.model vgg16"):
        _with_network(["--config", f"{path}:dual_view", "--config.model", "vgg16"])


@pytest.mark.parametrize("file", ["dscint", "quickstart"])
def test_every_option_of_dscint_is_a_field(file):
    known = models._options_of(models.NETWORKS["dscint"])
    assert {*_config(file, "dscint").model_options, "in_channels"} == set(known)


@pytest.mark.parametrize("file", ["dscint", "quickstart"])
@pytest.mark.parametrize("network", [*models.NETWORKS, "own_module:build"])
def test_every_config_fits_every_network(file, network):
    config = _config(file, network)
    check_config(config)
    assert config.model == network
    assert config.data.records == ("studies" if network == "dual_view" else "views")
    if network in models.NETWORKS:
        known = models._options_of(models.NETWORKS[network])
        assert set(config.model_options) <= set(known)
    else:
        assert not config.model_options


def test_config_of_a_run_is_read_as_the_run_recorded_it(tmp_path):
    path = tmp_path / "config.json"
    config = load_tiny_config()
    claim(tmp_path, config.to_dict())
    check_config(saved_config.get_config(str(path)))
    assert saved_config.get_config(str(path)).to_dict() == config.to_dict()


@pytest.mark.parametrize("words", [["--config", "r/config.json"], ["--config=r/config.json", "-x"]])
def test_config_of_a_run_is_handed_to_the_file_that_reads_it(words):
    file = saved_config.__file__
    assert _with_saved_config(words) == [w.replace("r/", f"{file}:r/") for w in words]
    assert _with_saved_config(["--config", "a.py:vgg16"]) == ["--config", "a.py:vgg16"]


@pytest.mark.parametrize("text", ["[1]", "{", '{"data": 3}', "null", "\x00"])
def test_what_is_no_config_of_a_run_is_said(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(DscintError, match=r"config\.json is no config of a run"):
        saved_config.get_config(str(path))


def test_folder_in_the_place_of_a_config_is_said_with_the_file_in_it(tmp_path):
    with pytest.raises(DscintError, match=r"is a folder; name a file, such as configs/dscint\.py"):
        _with_saved_config(["--config", str(tmp_path)])
    (tmp_path / "config.json").touch()
    with pytest.raises(DscintError, match=r"name a file, such as .*/config\.json"):
        _with_saved_config([f"--config={tmp_path}"])


# main with a training that ends as the first argument says.
PROGRAM = """
import sys
from absl import app
from dscint_jax import main, train

status = int(sys.argv.pop(1))


def end(config, workdir, *, cluster, **options):
    print(cluster.kind)
    if status >= 0:
        sys.exit(status)


train.train = end
app.run(main.main, flags_parser=main.parse_flags)
"""


def _main(status, *arguments):
    config = CONFIGS / "quickstart.py"
    return subprocess.run(
        [
            sys.executable,
            "-c",
            PROGRAM,
            str(status),
            f"--config={config}",
            "--workdir=w",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("status", "arguments", "expected"),
    [
        (-1, ["--status_when_stopped=75"], 0),
        (0, ["--status_when_stopped=75"], 75),
        (130, ["--status_when_stopped=75"], 130),
    ],
)
def test_only_a_run_stopped_by_sigterm_ends_with_the_given_status(status, arguments, expected):
    done = _main(status, *arguments)
    assert done.returncode == expected, done.stderr
    assert done.stdout == "alone\n"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--num_processes=2", "--process_id=1"], "missing: --coordinator_address"),
        (["--distributed=maybe"], "--distributed=maybe"),
    ],
)
def test_flags_of_several_processes_that_do_not_fit_are_one_line(arguments, word):
    config = CONFIGS / "quickstart.py"
    done = subprocess.run(
        [sys.executable, "-m", "dscint_jax.main", f"--config={config}", "--workdir=w", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert word in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
