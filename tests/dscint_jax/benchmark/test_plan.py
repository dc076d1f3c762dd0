import dataclasses

import pytest

from dscint_jax.benchmark.plan import Cell, read_benchmark
from tests.dscint_jax.conftest import TESTS
from tfds_builder.commandline.errors import UserError

SHIPPED = TESTS.parent / "configs" / "benchmark.py"


@pytest.mark.parametrize("size", ["smoke", "cpu", "paper"])
def test_shipped_sizes_have_the_published_networks_and_one_budget(size):
    plan = read_benchmark(f"{SHIPPED}:{size}")
    assert [*plan.networks] == [
        *("dscint", "alexnet", "vgg16", "resnet18", "densenet121", "inception_v4")
    ]
    protocols = ["patient"] if size == "smoke" else ["patient", "augmented"]
    assert [*plan.conditions] == protocols
    cells = [c for name in plan.networks for c in plan.cells(name, 1e-3)]
    configs = [plan.config(cell) for cell in cells]
    assert {c.protocol for c in configs} == {*protocols}
    shared = {(c.steps, c.batch_size, c.data, c.augmentation) for c in configs}
    assert len(shared) == 1


def test_a_cell_is_a_normal_run_of_its_own(plan):
    config = plan.config(Cell("alexnet", "augmented", 4e-3, 1))
    assert (config.model, config.protocol, config.seed) == ("alexnet", "augmented", 1)
    assert config.optimizer.learning_rate == 4e-3
    places = [c.place for name in plan.networks for c in plan.cells(name, 1e-3)]
    assert len(set(places)) == len(places) == 8


def test_an_ablation_is_the_first_network_with_something_left_out(plan):
    cells = plan.cells("no_attention", 1e-3)
    assert {cell.condition for cell in cells} == {"patient"}
    ours, whole = plan.config(cells[0]), plan.config(Cell("dscint", "patient", 1e-3, 0))
    assert ours.model_options["attention"] == "none"
    assert ours.replaced({"model_options": whole.model_options}) == whole


@pytest.mark.parametrize("size", ["cpu", "paper"])
def test_shipped_ablations_leave_out_one_thing_each_and_the_network_itself_none(size):
    plan = read_benchmark(f"{SHIPPED}:{size}")
    # Whatever order they are asked for in.
    ablated = {name: plan.config(plan.cells(name, 1e-3)[0]) for name in plan.ablations}
    whole = plan.config(plan.cells("dscint", 1e-3)[0])
    assert whole.model_options.get("attention", "hybrid") == "hybrid"
    for name, config in ablated.items():
        expected = whole.replaced(plan.ablations[name])
        assert config == expected, name
        assert config != whole, name
    if size == "cpu":
        assert len(whole.model_options["widths"]) == 8
        assert "norm_layers" not in whole.model_options


@pytest.mark.parametrize(
    "change, words",
    [
        ({"seeds": ()}, "seeds are empty"),
        ({"seeds": (1, 1)}, "have one twice"),
        ({"ablations": {"dscint": {}}}, "'dscint' is taken twice"),
        ({"conditions": {"a/b": {}}}, "'a/b'.*rename"),
    ],
)
def test_a_plan_that_cannot_be_is_named(plan, change, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(plan, **change)


def test_a_budget_in_epochs_is_refused(plan):
    with pytest.raises(UserError, match="steps are '3 epochs'; give a number"):
        dataclasses.replace(plan, base=plan.base.replaced({"steps": "3 epochs"}))


@pytest.mark.parametrize(
    "text, words",
    [
        ("def get_config(size='x'): return 3", "returns a int"),
        ("def get_config(size='x'): return {}[size]", "KeyError: 'x'"),
        ("x = 3", "KeyError: 'get_config'"),
    ],
)
def test_a_file_that_is_no_benchmark_is_named(tmp_path, text, words):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(UserError, match=words):
        read_benchmark(str(tmp_path / "own.py"))


def test_a_plan_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(UserError, match=r"none\.py: .* shipped are configs/benchmark\.py$"):
        read_benchmark("configs/none.py:cpu")


def test_a_field_that_does_not_fit_is_found_before_anything_runs(tmp_path):
    text = SHIPPED.read_text().replace('"model_options.attention"', '"modl_options.attention"')
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(UserError, match="modl_options"):
        read_benchmark(f"{tmp_path / 'own.py'}:cpu")


def test_the_data_set_may_be_another(tmp_path):
    plan = read_benchmark(f"{SHIPPED}:cpu", tmp_path)
    assert plan.base.data.dir == str(tmp_path)
