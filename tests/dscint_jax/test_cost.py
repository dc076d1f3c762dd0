import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dscint_jax import models
from dscint_jax.errors import DscintError
from dscint_jax.models import __main__ as command
from dscint_jax.models import cost, pooling
from dscint_jax.models.attention import GATE_SCOPE
from dscint_jax.models.layers import Conv

# Of the papers' and torchvision's networks for ImageNet: 1000 classes, 3 channels.
PARAMETERS = {
    "alexnet": 61_100_840,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "densenet121": 7_978_856,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "inception_v4": 42_679_816,
}
# The same, at 224x224.
MULTIPLY_ADDS = {
    "alexnet": 0.71e9,
    "vgg16": 15.47e9,
    "resnet18": 1.81e9,
    "resnet50": 4.09e9,
    "densenet121": 2.83e9,
}
WEIGHT_LAYERS = {
    "dscint": (8, 2),
    "alexnet": (5, 3),
    "vgg16": (13, 3),
    "vgg16_bn": (13, 3),
    "vgg19": (16, 3),
    "vgg19_bn": (16, 3),
    "resnet18": (17, 1),
    "resnet34": (33, 1),
    "resnet50": (49, 1),
    "resnet101": (100, 1),
    "densenet121": (120, 1),
    "densenet169": (168, 1),
    "densenet201": (200, 1),
}


class Network(nnx.Module):
    """Whatever `forward` makes of the images with modules and weights (shapes), all by name."""

    def __init__(self, forward, **parts):
        self.forward = forward
        for name, part in parts.items():
            setattr(self, name, nnx.Param(jnp.ones(part)) if isinstance(part, tuple) else part)

    def __call__(self, images, *, rngs=None):
        return self.forward(self, images, rngs)


def _forward(forward, shape, **parts):
    found = cost.forward_cost(Network(forward, **parts), shape)
    layers = found.weight_layers
    return found.multiply_adds, (layers.convolutions, layers.fully_connected)


def test_convolution_multiplies_at_every_output():
    options = {"stride": 2, "padding": 1, "dtype": jnp.float32, "rngs": nnx.Rngs(params=0)}
    conv = Conv(2, 5, 3, **options)
    # 9x7 becomes 5x4.
    expected = 5 * 4 * 5 * (3 * 3 * 2)
    found = _forward(lambda network, x, rngs: network.conv(x), (9, 7, 2), conv=conv)
    assert found == (expected, (1, 0))


def test_groups_divide_the_input_channels():
    conv = nnx.Conv(6, 4, (3, 2), feature_group_count=2, padding="VALID", rngs=nnx.Rngs(0))
    found = _forward(lambda network, x, rngs: network.conv(x), (5, 5, 6), conv=conv)
    assert found == (3 * 4 * 4 * (3 * 2 * 3), (1, 0))


def test_fully_connected_layer_multiplies_every_weight():
    def forward(network, x, rngs):
        return x.reshape(len(x), -1) @ network.kernel + network.bias[...][None]

    assert _forward(forward, (2, 3, 2), kernel=(12, 3), bias=(3,)) == (36, (0, 1))


def test_of_two_branches_the_longer_counts_as_layers_and_both_as_work():
    def forward(network, x, rngs):
        long = (x @ network.first) @ network.second
        return jnp.concatenate([x @ network.beside, long], -1)

    shapes = {"first": (4, 3), "second": (3, 2), "beside": (4, 5)}
    assert _forward(forward, (4,), **shapes) == (12 + 6 + 20, (0, 2))


def test_shortcut_is_no_layer_and_its_convolution_counts_as_work():
    def forward(network, x, rngs):
        return x @ network.shortcut + nnx.relu(x @ network.first) @ network.second

    shapes = {"first": (4, 4), "second": (4, 4), "shortcut": (4, 4)}
    assert _forward(forward, (4,), **shapes) == (3 * 16, (0, 2))


def test_gate_is_work_and_no_layer():
    def forward(network, x, rngs):
        with jax.named_scope(GATE_SCOPE):
            gate = jax.jit(lambda x, kernel: nnx.sigmoid(x @ kernel))(x, network.gate[...])
        return (x * gate) @ network.kernel

    assert _forward(forward, (4,), gate=(4, 4), kernel=(4, 2)) == (16 + 8, (0, 1))


def test_pooling_by_a_matrix_product_is_neither_work_nor_layer():
    pool = pooling.adaptive_average_pool
    assert _forward(lambda _, x, rngs: pool(x, (3, 2)), (8, 5, 2)) == (0, (0, 0))


def test_product_of_features_with_features_is_work_and_no_layer():
    def forward(network, x, rngs):
        shares = jax.nn.softmax(x @ jnp.swapaxes(x, 1, 2))
        return (shares @ x).mean(1) @ network.kernel

    assert _forward(forward, (3, 4), kernel=(4, 2)) == (2 * 3 * 3 * 4 + 8, (0, 1))


def test_product_of_weights_with_weights_belongs_to_no_example():
    def forward(network, x, rngs):
        return x @ (network.left[...] @ network.right[...])

    assert _forward(forward, (4,), left=(4, 1), right=(1, 3)) == (12, (0, 1))


@pytest.mark.parametrize(
    ("loop", "passes"),
    [
        (lambda step, x, rows: jax.lax.scan(lambda x, row: (step(x, row), None), x, rows)[0], 3),
        (lambda step, x, rows: jax.lax.fori_loop(0, 3, lambda i, x: step(x, rows[i]), x), 3),
        (
            lambda step, x, rows: jax.lax.while_loop(
                lambda x: False, lambda x: step(x, rows[0]), x
            ),
            1,
        ),
        (lambda step, x, rows: jax.lax.cond(x.sum() > 0, lambda: step(x, rows[0]), lambda: x), 1),
        (lambda step, x, rows: jax.checkpoint(step)(x, rows[0]), 1),
        (lambda step, x, rows: jax.vmap(step, (0, None))(x, rows[0]), 1),
    ],
    ids=["scan", "fori_loop", "while_loop", "cond", "checkpoint", "vmap"],
)
def test_calls_and_loops_are_followed(loop, passes):
    def forward(network, x, rngs):
        return loop(lambda x, kernel: x @ kernel, x, network.kernels[...])

    assert _forward(forward, (4,), kernels=(3, 4, 4)) == (passes * 16, (0, passes))


def test_backpropagation_keeps_inputs_of_layers_and_signs_of_relu():
    def forward(network, x, rngs):
        return nnx.relu(x @ network.first) @ network.second

    model = Network(forward, first=(6, 5), second=(5, 2))
    of_one = 6 * 4 + 5 * 1 + 5 * 4
    for batch in (1, 2, 7):
        assert cost.activation_bytes(model, (6,), batch=batch) == batch * of_one


def test_backpropagation_keeps_the_mask_of_dropout():
    drop = nnx.Dropout(0.5)

    def forward(network, x, rngs):
        return drop(x, rngs=rngs) @ network.kernel + (x @ network.beside)

    def kept(**options):
        return cost.activation_bytes(Network(forward, **options), (6,), batch=3)

    # x, and what dropout leaves of it.
    assert kept(kernel=(6, 2), beside=(6, 2)) == 3 * (6 * 4 + 6 * 4)

    def after(network, x, rngs):
        return drop(x @ network.kernel, rngs=rngs)

    # x, and which of the products are kept.
    assert cost.activation_bytes(Network(after, kernel=(6, 2)), (6,), batch=3) == 3 * (6 * 4 + 2)


def test_half_the_precision_halves_what_is_kept_but_for_signs():
    kept = [
        cost.network_cost("alexnet", size=(64, 32), options={"dtype": dtype}).activation_bytes
        for dtype in models.DTYPES
    ]
    assert 0.5 < kept[1] / kept[0] < 0.7


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_ones(name):
    model = cost.abstract_network(name, num_classes=1000, channels=3)
    assert cost.parameter_count(model) == PARAMETERS[name]
    leaves = jax.tree.leaves(nnx.state(model))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


@pytest.mark.parametrize("name", MULTIPLY_ADDS)
def test_multiply_adds_are_the_published_ones(name):
    model = cost.abstract_network(name, num_classes=1000, channels=3)
    found = cost.forward_cost(model, (224, 224, 3)).multiply_adds
    assert found == pytest.approx(MULTIPLY_ADDS[name], rel=0.01)


@pytest.mark.parametrize("name", WEIGHT_LAYERS)
def test_weight_layers_are_those_of_the_name(name):
    found = cost.forward_cost(cost.abstract_network(name, num_classes=4), (256, 64, 1))
    layers = found.weight_layers
    assert (layers.convolutions, layers.fully_connected) == WEIGHT_LAYERS[name]
    if number := "".join(filter(str.isdigit, name)):
        assert layers.total == int(number)


class Studies(nnx.Module):
    """Reads both views of a study."""

    RECORDS = "studies"

    def __init__(self, *, num_classes, rngs):
        self.head = nnx.Linear(1, num_classes, rngs=rngs)

    def __call__(self, images, *, rngs=None):
        _, view, _, _, channel = images.shape
        assert (view, channel) == (2, 1)
        return self.head(images.mean((1, 2, 3)))


class Refuses(Studies):
    """Reads single views, and of these none."""

    RECORDS = "views"

    def __call__(self, images, *, rngs=None):
        raise TypeError("not today")


def test_network_that_reads_studies_gets_two_views():
    found = cost.network_cost(f"{__name__}:Studies", size=(8, 4), batch=5)
    assert (found.parameters, found.multiply_adds) == (8, 4)
    # The two features' mean.
    assert found.activation_bytes == 5 * 4


def test_network_that_fails_is_named_in_one_error():
    with pytest.raises(DscintError, match=r"Refuses cannot read .* 8x4x1: TypeError: not today"):
        cost.network_cost(f"{__name__}:Refuses", size=(8, 4))


def _json(capsys, *arguments):
    command.main([*arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def test_layers_come_in_the_order_of_the_forward_pass_and_add_up(capsys):
    layers = _json(capsys, "--layers", "dscint")["layers"]
    paths = [layer["path"] for layer in layers]
    assert paths[:2] == ["convolutions.0.conv", "convolutions.0.norm"]
    assert paths.index("attention.spatial_gate.conv") < paths.index("convolutions.4.conv")
    assert paths[-2:] == ["hidden", "head"]
    assert layers[0]["shapes"] == {"kernel": [3, 3, 1, 32], "gain": [32]}
    (found,) = _json(capsys, "--network", "dscint")["networks"]
    assert sum(layer["parameters"] for layer in layers) == found["parameters"]


def test_options_reach_the_network(capsys):
    options = ("--size", "64x32", "--classes", "7", "--channels", "3", "--batch", "2")
    (found,) = _json(capsys, "--network", "resnet18", *options)["networks"]
    expected = cost.network_cost("resnet18", num_classes=7, size=(64, 32), channels=3, batch=2)
    assert found["parameters"] == expected.parameters
    assert found["multiply_adds"] == expected.multiply_adds
    assert found["activation_bytes"] == expected.activation_bytes


@pytest.mark.slow
def test_numbers_do_not_depend_on_devices_and_fit_80_columns(capsys):
    arguments = ("--network", "dscint", "--network", "resnet18")
    expected = _json(capsys, *arguments)
    assert jax.device_count() > 1
    environment = {**os.environ, "XLA_FLAGS": "", "COLUMNS": "80"}
    for extra in (["--json"], []):
        done = subprocess.run(
            [sys.executable, "-m", "dscint_jax.models", *arguments, *extra],
            capture_output=True,
            text=True,
            env=environment,
            timeout=200,
        )
        assert (done.returncode, done.stderr) == (0, "")
        if extra:
            assert json.loads(done.stdout) == expected
        else:
            assert max(map(len, done.stdout.splitlines())) <= 80
            assert "8 + 2" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--network", "dscnt"), "dscnt"),
        (("--size", "1024"), "--size: '1024' is no height and width"),
        (("--batch", "0"), "--batch: '0'"),
        (("--network", "dscint", "--size", "16x8"), "dscint cannot read an example of 16x8x1"),
        (("--layers", "dscint", "--network", "dscint"), "not allowed with"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(DscintError, match=message):
        command.main(list(arguments))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dscint", pytest.param("resnet18", marks=pytest.mark.exhaustive)])
def test_activation_memory_is_about_what_xla_takes_for_another_example(name):
    model, shape, batch = cost.abstract_network(name, num_classes=4), (128, 64, 1), 8
    kept = cost.activation_bytes(model, shape, batch=batch)
    graph, params, statistics = nnx.split(model, nnx.Param, ...)

    def loss(params, statistics, images):
        network = nnx.merge(graph, params, statistics, copy=True)
        return (network(images, rngs=nnx.Rngs(0)) ** 2).mean()

    def taken(batch):
        images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
        compiled = jax.jit(jax.grad(loss)).lower(params, statistics, images).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert 0.7 < kept / (taken(2 * batch) - taken(batch)) < 1.4
