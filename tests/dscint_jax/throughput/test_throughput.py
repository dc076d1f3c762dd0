import dataclasses
import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from dscint_jax.throughput.compare import Comparison, compare, measure_apart, workload_of
from dscint_jax.throughput.report import measure_all
from dscint_jax.throughput.workload import JAX, TOLERANCE, Measurement, timed
from tfds_builder.commandline.errors import UserError

FIELDS = {"size": (128, 32), "batch": 4, "dtype": "float32", "seconds": 0.1}


def measurement(**fields):
    values = {
        **{"framework": "", "step_s": 1.0, "quartiles_s": (0.9, 1.1), "steps": 5},
        **{"first_step_s": 9.0, "peak_bytes": 1e9, "loss": 1.5, "gradient_norm": 3.0},
        **{"gemm_flops": 1e9, "device": "cpu"},
    }
    return Measurement(**(values | fields))


@pytest.mark.slow
@pytest.mark.parametrize("train", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_dscint_in_pytorch_has_the_loss_and_gradient_of_ours(train):
    pytest.importorskip("torch")
    workload = workload_of("dscint", train=train, **FIELDS)
    narrow = {**workload.options, "widths": (4, 6, 8, 6, 8, 8, 8, 6), "hidden": 16}
    workload = dataclasses.replace(workload, options=narrow)
    found = compare(workload, ["torch"], rounds=1)
    (ours,), (other,) = found.measured[JAX], found.measured["torch"]
    assert not found.refused
    assert ours.loss == pytest.approx(other.loss, rel=1e-5)
    assert ours.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)
    assert (ours.gradient_norm > 0) == train
    with TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        measure_apart(workload, JAX, weights)
        exact = measure_apart(dataclasses.replace(workload, dtype="float64"), "torch", weights)
    assert exact.loss != other.loss
    assert exact.loss == pytest.approx(other.loss, rel=1e-5)
    assert exact.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)
    assert found.ratios("torch") == [other.step_s / ours.step_s]
    assert 0 < found.of_peak(JAX) < 1.2


@pytest.mark.exhaustive
def test_onnxruntime_has_the_loss_of_ours():
    pytest.importorskip("onnxruntime")
    workload = workload_of("dscint", train=False, **FIELDS)
    narrow = {**workload.options, "widths": (4, 6, 8, 6, 8, 8, 8, 6), "hidden": 16}
    found = compare(dataclasses.replace(workload, options=narrow), ["onnxruntime"], rounds=1)
    (ours,), (other,) = found.measured[JAX], found.measured["onnxruntime"]
    assert not found.refused
    assert ours.loss == pytest.approx(other.loss, rel=1e-5)
    assert found.ratios("onnxruntime") == [other.step_s / ours.step_s]


@pytest.mark.parametrize("changed", [{"train": True}, {"train": False, "dtype": "bfloat16"}])
def test_onnxruntime_is_measured_on_predictions_in_float32(changed):
    settings = {k: v for k, v in FIELDS.items() if k not in ("batch", "seconds")} | changed
    with pytest.raises(UserError, match="onnxruntime predicts in float32 alone; add --forward"):
        measure_all(
            ["dscint"],
            **settings,
            batches=[8],
            seconds=1,
            peers=["onnxruntime"],
            rounds=1,
            out=None,
        )


@pytest.mark.parametrize(
    "other",
    [
        {"loss": 1.5 * (1 + 2 * TOLERANCE["float32"])},
        {"gradient_norm": 3.0 * (1 - 2 * TOLERANCE["float32"])},
        {"loss": math.nan},
    ],
)
def test_no_ratio_where_the_two_do_not_compute_the_same(monkeypatch, other):
    monkeypatch.setattr(
        "dscint_jax.throughput.compare.measure_apart",
        lambda workload, framework, weights: measurement(**({} if framework == JAX else other)),
    )
    found = compare(workload_of("dscint", train=True, **FIELDS), ["torch"], rounds=2)
    assert next(iter(other)) in found.refused["torch"]
    assert found.ratios("torch") == []
    assert found.to_dict()["ratios"] == {"torch": []}


@pytest.mark.parametrize(
    ("exact", "farther"),
    [(3.0, "torch"), (3.0 * (1 + 1.5 * TOLERANCE["float32"]), "jax"), (3.0045, "neither")],
)
def test_refusal_says_which_of_the_two_is_off_64_bits(monkeypatch, exact, farther):
    norms = {JAX: 3.0, "torch": 3.0 * (1 + 1.5 * TOLERANCE["float32"])}

    def measure(workload, framework, weights):
        norm = exact if workload.dtype == "float64" else norms[framework]
        return measurement(gradient_norm=norm)

    monkeypatch.setattr("dscint_jax.throughput.compare.measure_apart", measure)
    found = compare(workload_of("dscint", train=True, **FIELDS), ["torch"], rounds=1)
    assert found.ratios("torch") == []
    assert f"from which {farther} is off" in found.refused["torch"]


def test_ratio_is_of_neighbours_and_share_is_of_the_product_of_the_same_process():
    workload = workload_of("dscint", train=True, **FIELDS)
    ours = [measurement(step_s=1.0, gemm_flops=8e9), measurement(step_s=2.0, gemm_flops=4e9)]
    other = [measurement(step_s=3.0), measurement(step_s=4.0)]
    found = Comparison(workload, 4e9, {JAX: ours, "torch": other}, {})
    assert found.ratios("torch") == [3.0, 2.0]
    assert found.of_peak(JAX) == 0.5
    assert found.images_s(JAX) == 4 / 1.5


def test_what_fails_is_told_and_the_others_are_measured(monkeypatch, tmp_path, capsys):
    def measure(workload, framework, weights):
        if workload.network == "alexnet":
            raise UserError("alexnet, jax: too large")
        return measurement()

    monkeypatch.setattr("dscint_jax.throughput.compare.measure_apart", measure)
    out = tmp_path / "throughput.json"
    settings = {k: v for k, v in FIELDS.items() if k not in ("batch", "seconds")}
    assert measure_all(
        ["alexnet", "dscint"],
        **settings,
        batches=[4, 8],
        seconds=1,
        train=True,
        peers=["torch"],
        rounds=1,
        out=out,
    )
    told = json.loads(out.read_text())
    assert [network["batch"] for network in told["networks"]] == [4, 8]
    assert told["errors"] == ["alexnet, jax: too large"] * 2
    # Whole in a terminal of 80 columns.
    assert "dscint, 8" in (shown := capsys.readouterr().out)
    assert "1.00 (1.00-1.00)" in shown


@pytest.mark.parametrize(
    ("network", "peers", "word"),
    [
        ("dscnt", [], "resnet18"),
        ("dual_view", [], "dual_view"),
        ("vgg16_bn", ["torch"], "vgg16_bn"),
    ],
)
def test_network_that_is_not_there_is_named(network, peers, word):
    settings = {k: v for k, v in FIELDS.items() if k not in ("batch", "seconds")}
    with pytest.raises(UserError, match=word):
        measure_all(
            [network],
            **settings,
            batches=[8],
            seconds=1,
            train=True,
            peers=peers,
            rounds=1,
            out=None,
        )


def test_steps_are_timed_until_the_time_is_over_and_five_at_least():
    assert len(timed(lambda: None, 0.0)) == 5
    assert len(timed(lambda: None, 0.05)) > 5


def test_every_field_of_a_workload_goes_through_json():
    workload = workload_of("vgg16", train=False, **FIELDS)
    assert workload.options == {"dropout": 0.0}
    assert json.loads(json.dumps(dataclasses.asdict(workload)))["size"] == [128, 32]
