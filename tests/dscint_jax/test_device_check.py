"""The check of an accelerator, in its small form."""

import dataclasses
import json

import pytest

from dscint_jax import device_check
from dscint_jax.device_check import FILE, PARTS, SMALL, check_device
from tfds_builder.commandline.errors import UserError


@pytest.mark.exhaustive
def test_small_check_runs_every_part_and_none_again(tmp_path, capfd, monkeypatch):
    assert check_device(tmp_path, SMALL)
    told = json.loads((tmp_path / FILE).read_text())
    assert not any(told[name]["errors"] for name in PARTS)
    here, there = told["agreement"]["networks"]["dscint"]["loss"]
    assert here == pytest.approx(there, rel=1e-5)
    assert told["throughput"]["networks"][0]["frameworks"]["jax"]["images_s"] > 0
    assert told["training"]["host"]["images_per_second"] > 0
    assert told["training"]["metrics"]["support"] > 0
    assert told["repeated"]["trainings"]["as it is"]["same_bits"]
    monkeypatch.setattr("dscint_jax.device_check._command", None)
    assert check_device(tmp_path, SMALL)
    assert json.loads((tmp_path / FILE).read_text()) == told


def test_part_that_fails_is_told_done_again_and_leaves_the_others_alone(
    tmp_path, monkeypatch, capsys
):
    done = []

    def sound(plan, workdir):
        done.append("sound")
        return {"errors": []}

    def failing(plan, workdir):
        done.append("failing")
        raise UserError("out of memory")

    monkeypatch.setattr(device_check, "PARTS", {"first": failing, "second": sound})
    for _ in range(2):
        assert not check_device(tmp_path, SMALL)
    assert done == ["failing", "sound", "failing"]
    assert "first: out of memory" in capsys.readouterr().out
    with pytest.raises(UserError, match="of another plan; use another --workdir"):
        check_device(tmp_path, dataclasses.replace(SMALL, steps=5))


def test_trainings_with_other_bits_are_an_error(tmp_path, monkeypatch):
    def train(config, plan, run, **options):
        run.mkdir()
        (run / "provenance.json").write_text('[{"backend": "cpu"}]')
        (run / "train_speed.jsonl").write_text('{"step": 4}\n')

    monkeypatch.setattr(device_check, "_data_set", lambda *_: None)
    monkeypatch.setattr(device_check, "_train", train)
    checksums = iter("ab")
    monkeypatch.setattr(device_check, "_checksum", lambda run: next(checksums))
    found = device_check.repeated(SMALL, tmp_path)
    assert found["errors"] == ["two trainings end in other bits"]
