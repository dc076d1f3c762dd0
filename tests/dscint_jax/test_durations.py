"""Durations: numbers and texts, in config files and on the command line."""

import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from dscint_jax.config import DURATIONS
from dscint_jax.durations import free_durations, resolve_durations
from dscint_jax.errors import DscintError

CONFIGS = Path(__file__).parent.parent.parent / "configs"

# Prints what the flags and 100 training images in batches of 10 make of the durations.
PROGRAM = """
import sys
from absl import app
from dscint_jax import main
from dscint_jax.durations import resolve_durations


def show(argv):
    config = resolve_durations(main._CONFIG.value, examples=100, batch_size=10)
    print(config.steps, config.optimizer.warmup_steps, config.log_every, config.evaluate_every)


app.run(show, flags_parser=main.parse_flags)
"""

OWN = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({"steps": STEPS, "optimizer": {"warmup_steps": 1}, "log_every": 1,
                       "evaluate_every": 1})
"""


def _config(**values):
    values = {"steps": 100, "warmup_steps": 1, "log_every": 1, "evaluate_every": 1} | values
    config = ConfigDict({"optimizer": {"warmup_steps": values.pop("warmup_steps")}, **values})
    free_durations(config)
    return config


def _resolve(**values):
    return resolve_durations(_config(**values), examples=105, batch_size=10)


def _durations_of(file, *overrides):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "--config", str(file), "--workdir=w", *overrides],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (1200, 1200),
        (1e3, 1000),
        ("1200", 1200),
        ("1_200 steps", 1200),
        ("1 step", 1),
        ("30 epochs", 300),
        ("30epochs", 300),
        (" 30 Epochs ", 300),
        ("1.5 epochs", 15),
        ("10000 examples", 1000),
        ("1 example", 1),
    ],
)
def test_every_unit_becomes_steps(text, steps):
    assert _resolve(steps=text).steps == steps


@pytest.mark.parametrize(
    ("text", "steps"), [("5 %", 10), ("5%", 10), ("12.5 percent", 25), ("0 %", 0), ("1 epoch", 10)]
)
def test_share_is_one_of_the_whole_training(text, steps):
    assert _resolve(steps="20 epochs", warmup_steps=text).optimizer.warmup_steps == steps


def test_epoch_of_less_than_a_batch_is_a_step():
    assert resolve_durations(_config(steps="7 epochs"), examples=3, batch_size=10).steps == 7


@pytest.mark.parametrize(
    "value",
    [
        *(
            "",
            "epochs",
            "thirty epochs",
            "30 hours",
            "-5",
            "-5 epochs",
            "1e3 epochs",
            "30 epochs 2",
        ),
        *(0, -1, 1.5, "1.5", "0.4 steps", True, None, [30], "_", "5 %", 2**31, 10**400, "9" * 400),
    ],
)
def test_what_is_no_duration_is_one_line_that_names_the_field(value):
    with pytest.raises(DscintError, match=r"^config\.steps is ") as raised:
        _resolve(steps=value)
    assert "\n" not in str(raised.value)


def test_resolving_leaves_the_config_as_it_was():
    config = _config(steps="30 epochs")
    assert resolve_durations(config, examples=100, batch_size=10).steps == 300
    assert config.steps == "30 epochs"


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_texts_and_numbers_override_every_duration_of_every_shipped_config(config):
    texts = ("30 epochs", "5 %", "2 epochs", "400 examples")
    fields = [f"--config.{field}" for field in DURATIONS]
    done = _durations_of(config, *(f"{f}={t}" for f, t in zip(fields, texts, strict=True)))
    assert (done.stdout, done.stderr) == ("300 15 20 40\n", "")
    done = _durations_of(config, *(f"{field}=7" for field in fields))
    assert (done.stdout, done.stderr) == ("7 7 7 7\n", "")


@pytest.mark.parametrize(
    ("inside", "given", "steps"),
    [
        ("1200", "30 epochs", 300),
        ("'30 epochs'", "1000", 1000),
        ("'30 epochs'", "20 epochs", 200),
        ("'1200'", "2 epochs", 20),
        ("'30 epochs'", None, 300),
    ],
)
def test_config_file_of_ones_own_may_have_either(tmp_path, inside, given, steps):
    file = tmp_path / "own.py"
    file.write_text(OWN.replace("STEPS", inside))
    done = _durations_of(file, *([f"--config.steps={given}"] if given else []))
    assert (done.stdout, done.stderr) == (f"{steps} 1 1 1\n", "")


def test_copy_of_a_shipped_config_may_have_a_text_in_place_of_its_number(tmp_path):
    text = (CONFIGS / "quickstart.py").read_text()
    copy = tmp_path / "mine.py"
    copy.write_text(text.replace("duration(1200)", '"30 epochs"'))
    assert _durations_of(copy).stdout.split()[0] == "300"
    assert _durations_of(copy, "--config.steps=12").stdout.split()[0] == "12"
