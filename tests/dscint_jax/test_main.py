import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from dscint_jax import main, models
from dscint_jax.config import FIELDS, Config
from dscint_jax.config_files import located
from dscint_jax.run.workdir import claim
from tests.dscint_jax.conftest import load_tiny_config
from tfds_builder.commandline.errors import UserError

CONFIGS = Path(__file__).parent.parent.parent / "configs"


def _config(file, network):
    spec = importlib.util.spec_from_file_location(file, CONFIGS / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(network)


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
    assert located(given) == expected


def test_config_whose_path_would_be_cut_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "a:b"
    folder.mkdir()
    (folder / "own.py").write_text((CONFIGS / "dscint.py").read_text())
    with pytest.raises(UserError, match=r"a:b/own\.py: what follows a colon is taken"):
        located(f"{folder}/own.py")
    monkeypatch.chdir(folder)
    assert located("own.py:vgg16") == "own.py:vgg16"


def test_config_of_ones_own_is_the_one_that_is_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "dscint.py").touch()
    assert located("configs/dscint.py:vgg16") == "configs/dscint.py:vgg16"


@pytest.mark.parametrize("name", ["configs/none.py", "dscint.py", "my/configs/dscint.py"])
def test_config_that_is_not_there_is_named_with_those_that_are(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"--config {name}: .* shipped are configs/dscint.py, "):
        located(name)


MISTAKES = {
    "--config.model=vgg16": "--config.model=vgg16: name the network after the config file",
    "--config.stpes=3": "config has no field 'stpes'; did you mean 'config.steps'?",
    "--config.data.dri=x": "config has no field 'dri'; did you mean 'config.data.dir'?",
    "--config.warmup_steps=3": "did you mean 'config.optimizer.warmup_steps'?",
    "--config.model_options.encoder_options.norm=group": "into model_options in a copy of the",
    "--config.foo.bar=3": "config has no field 'foo'",
    "--config.batch_size=x": "flag --config.batch_size=x",
    "--config.data.clip=0": "config.data.clip is 0.0; it must be more than 0",
}


@pytest.mark.parametrize("argument", MISTAKES)
def test_mistake_in_a_field_is_one_line(argument):
    given = ["--config", CONFIGS / "dscint.py", "--workdir=w", argument]
    done = subprocess.run(
        [sys.executable, "-m", "dscint_jax.main", *given],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert MISTAKES[argument] in done.stderr


def test_every_field_is_in_the_help():
    done = subprocess.run(
        [sys.executable, "-m", "dscint_jax.main", "--help"], capture_output=True, text=True
    )
    assert all(f"\n  {name} = " in done.stdout for name in FIELDS)


def test_config_file_that_returns_something_else_is_named(tmp_path):
    own = tmp_path / "own.py"
    own.write_text("def get_config():\n    return {'steps': 3}\n")
    with pytest.raises(UserError, match=r"own\.py: get_config returns a dict; it must return"):
        main.flags.FLAGS["config"].parser.parse(str(own))


def test_a_benchmark_is_told_from_a_config():
    with pytest.raises(UserError, match=r"returns a Benchmark; .* python -m dscint_jax\.benchmark"):
        main.flags.FLAGS["config"].parser.parse(str(CONFIGS / "benchmark.py"))


@pytest.mark.parametrize("file", ["dscint", "quickstart"])
@pytest.mark.parametrize("network", [*models.NETWORKS, "own_module:build"])
def test_every_config_fits_every_network(file, network):
    config = _config(file, network)
    assert config.model == network
    assert config.data.records == ("studies" if network == "dual_view" else "views")
    if network in models.NETWORKS:
        known = models.complete_options(network, {})
        assert set(config.model_options) <= set(known)
    else:
        assert not config.model_options


def test_config_of_a_run_is_read_as_the_run_recorded_it(tmp_path):
    claim(tmp_path, load_tiny_config())
    given = main.flags.FLAGS["config"].parser.parse(str(tmp_path / "config.json"))
    assert Config.from_dict(given.to_dict()) == load_tiny_config()


def test_folder_in_the_place_of_a_config_is_said_with_the_file_in_it(tmp_path):
    with pytest.raises(UserError, match=r"is a folder; name a file, such as configs/dscint\.py"):
        main.flags.FLAGS["config"].parser.parse(str(tmp_path))
    (tmp_path / "config.json").touch()
    with pytest.raises(UserError, match=r"name a file, such as .*/config\.json"):
        main.flags.FLAGS["config"].parser.parse(str(tmp_path))


# main with a training that is stopped at once.
PROGRAM = """
import sys
from absl import app
from dscint_jax import main
from dscint_jax.training import train


def end(config, workdir, *, cluster, status_when_stopped, **options):
    print(cluster.kind)
    sys.exit(status_when_stopped)


train.train = end
app.run(main.main, flags_parser=main.parse_flags)
"""


def _main(*arguments):
    config = CONFIGS / "quickstart.py"
    return subprocess.run(
        [
            sys.executable,
            "-c",
            PROGRAM,
            f"--config={config}",
            "--workdir=w",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(("arguments", "expected"), [([], 0), (["--status_when_stopped=75"], 75)])
def test_training_is_told_the_status_to_end_with_when_it_is_stopped(arguments, expected):
    done = _main(*arguments)
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
