"""Configs: what a field may hold, durations in every unit, files and the command line."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dscint_jax.config import DURATIONS, FIELDS, Config, Data, fields_of, read_config
from dscint_jax.config_fields import limits_of, meaning_of
from dscint_jax.durations import resolve_durations
from tfds_builder.commandline.errors import UserError

CONFIGS = Path(__file__).parent.parent.parent / "configs"
DOCS = CONFIGS.parent / "docs"

# Prints what the flags and 100 training images in batches of 10 make of the durations.
PROGRAM = """
from absl import app
from dscint_jax import main
from dscint_jax.durations import resolve_durations


def show(argv):
    config = resolve_durations(main._read_config(), examples=100, batch_size=10)
    print(config.steps, config.optimizer.warmup_steps, config.log_every, config.evaluate_every)


app.run(show, flags_parser=main.parse_flags)
"""

OWN = """
from dscint_jax.config import Config, Optimizer

def get_config():
    return Config(steps=STEPS, optimizer=Optimizer(warmup_steps=1), log_every=1, evaluate_every=1)
"""


def _resolve(**values):
    given = {"steps": 100, "log_every": 1, "evaluate_every": 1, **values}
    given["optimizer.warmup_steps"] = given.pop("warmup_steps", 1)
    return resolve_durations(Config().replaced(given), examples=105, batch_size=10)


def _durations_of(file, *overrides):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "--config", str(file), "--workdir=w", *overrides],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_tells_what_it_is_for_and_its_default_fits(name):
    (field, default) = next((f, v) for n, f, v in fields_of(Config()) if n == name)
    assert meaning_of(field).endswith((".", "disk"))
    assert limits_of(field).fault(default) is None
    assert getattr(Config().replaced({name: default}), name.split(".")[0]) is not None


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"log_evry": 3}, r"config\.log_evry is no field.*did you mean config\.log_every\?"),
        ({"data.dri": "x"}, r"config\.data\.dri is no field.*did you mean config\.data\.dir\?"),
        ({"seed": 2**32}, r"config\.seed is 4294967296; it must be less than 4294967296"),
        ({"seed": True}, r"config\.seed is True; it must be a whole number"),
        ({"batch_size": 0}, r"config\.batch_size is 0; it must be at least 1"),
        ({"batch_size": 1.5}, r"config\.batch_size is 1\.5; it must be a whole number"),
        ({"label_smoothing": 2.0}, r"config\.label_smoothing is 2\.0; it must be at most 1"),
        ({"ema": 1.0}, r"config\.ema is 1\.0; it must be less than 1"),
        ({"data.clip": 0}, r"config\.data\.clip is 0; it must be more than 0"),
        ({"mixup": float("nan")}, r"config\.mixup is nan; it must be finite"),
        ({"data.records": "pairs"}, r"config\.data\.records is 'pairs'.*views or studies"),
        ({"optimizer.name": 3}, r"config\.optimizer\.name is 3; it must be a text"),
        ({"trackers": "wandb"}, r"config\.trackers is 'wandb'; it must be a list of texts"),
        ({"data": 3}, r"config\.data is 3; it must be a group of fields"),
        ({"model_options.x": {1}}, r"config\.model_options\.x is a set; it must be a number"),
        *(
            (
                {"augmentation.translation": bad},
                rf"config\.augmentation\.translation is .*; {what}$",
            )
            for bad, what in (
                (("a", "b"), "it must be 2 numbers"),
                ((0.1, None), "it must be 2 numbers"),
                ((0.1,), "it must be 2 numbers"),
                ((True, 0.1), "it must be 2 numbers"),
                ((0.1, 1.0), "it must be less than 1"),
                ((-0.1, 0.1), "it must be at least 0"),
            )
        ),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_the_field(fields, message):
    with pytest.raises(UserError, match=message) as raised:
        Config().replaced(fields)
    assert "\n" not in str(raised.value)


def test_field_that_an_older_file_does_not_have_is_its_default():
    values = Config().to_dict()
    del values["data"]["training_share"]
    assert Config.from_dict(values) == Config()


def test_copy_has_other_values_and_the_config_stays():
    config = Config(model_options={"norm": "batch"})
    other = config.replaced({"data.pool": 4, "model_options.hidden": 8, "steps": "3 epochs"})
    assert (other.data.pool, other.steps) == (4, "3 epochs")
    assert other.model_options == {"norm": "batch", "hidden": 8}
    assert config == Config(model_options={"norm": "batch"})
    assert other.replaced({"model_options": {}}).model_options == {}


def test_a_size_of_an_augmentation_that_never_happens_is_refused():
    with pytest.raises(UserError, match=r"thinning is 0\.9, but .*thinned, its probability, is 0"):
        Config().replaced({"augmentation.thinning": 0.9})
    both = {"augmentation.thinning": 0.9, "augmentation.thinned": 0.5}
    assert Config().replaced(both).augmentation.thins


def test_a_copy_leaves_the_values_that_it_was_given_as_they_are():
    options = {"widths": (8, 8)}
    changed = Config().replaced({"model_options": options, "model_options.widths": (4,)})
    assert changed.model_options == {"widths": (4,)}
    assert options == {"widths": (8, 8)}


def test_reference_of_the_documents_is_what_the_fields_say():
    spec = importlib.util.spec_from_file_location("make", DOCS / "make_configuration.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    assert make.FILE.read_text() == make.text(), "run python docs/make_configuration.py"


def test_group_is_checked_when_it_is_made():
    with pytest.raises(UserError, match=r"config\.data\.pool is 0; it must be at least 1"):
        Data(pool=0)


def test_config_json_of_a_run_is_the_config_again(tmp_path):
    path = tmp_path / "config.json"
    config = Config().replaced({"model_options": {"widths": (8, 8), "table": {"inner": (1,)}}})
    path.write_text(json.dumps(config.to_dict()))
    assert read_config(path) == config


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("text", ["[1]", "{", '{"data": 3}', "null", "\x00", "{}"])
def test_what_is_no_config_of_a_run_is_said(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"config\.json is no config of a run"):
        read_config(path)


@pytest.mark.usefixtures("unchecked")
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
    assert resolve_durations(Config(steps="7 epochs"), examples=3, batch_size=10).steps == 7


@pytest.mark.usefixtures("unchecked")
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
    with pytest.raises(UserError, match=r"^config\.steps is ") as raised:
        _resolve(steps=value)
    assert "\n" not in str(raised.value)


def test_resolving_leaves_the_config_as_it_was():
    config = Config(steps="30 epochs", log_every=1, evaluate_every=1)
    assert resolve_durations(config, examples=100, batch_size=10).steps == 300
    assert config.steps == "30 epochs"


TRAININGS = [path for path in sorted(CONFIGS.glob("*.py")) if path.stem != "benchmark"]


@pytest.mark.parametrize("config", TRAININGS, ids=lambda path: path.stem)
def test_texts_and_numbers_override_every_duration_of_every_shipped_training(config):
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
    copy.write_text(text.replace("steps=700 if dscint else 1200", 'steps="30 epochs"'))
    assert _durations_of(copy).stdout.split()[0] == "300"
    assert _durations_of(copy, "--config.steps=12").stdout.split()[0] == "12"
