import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dscint_jax import models
from dscint_jax.models import __main__ as command
from dscint_jax.models import cost
from tfds_builder.commandline.errors import UserError

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
# The same, with the convolutions of shortcuts: as many as torchvision's modules.
KERNELS = {
    "alexnet": (5, 3),
    "vgg16": (13, 3),
    "vgg16_bn": (13, 3),
    "vgg19": (16, 3),
    "vgg19_bn": (16, 3),
    "resnet18": (20, 1),
    "resnet34": (36, 1),
    "resnet50": (53, 1),
    "resnet101": (104, 1),
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


def test_multiply_add_is_two_operations():
    def forward(network, x, rngs):
        return jax.lax.conv(x, network.kernel[...], (1, 1), "VALID") @ network.matrix[...][0, 0]

    model = Network(forward, kernel=(5, 2, 3, 3), matrix=(1, 1, 6, 4))
    # Of channels first: 2x9x8 becomes 5x7x6, and each row of 6 becomes one of 4.
    expected = (5 * 7 * 6) * (2 * 3 * 3) + (5 * 7 * 4) * 6
    assert cost.forward_flops(model, (2, 9, 8)) == 2 * expected


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


@functools.cache
def _published(name):
    return cost.abstract_network(name, num_classes=1000, channels=3)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_ones(name):
    model = _published(name)
    assert cost.parameter_count(model) == PARAMETERS[name]
    leaves = jax.tree.leaves(nnx.state(model))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


@pytest.mark.parametrize("name", MULTIPLY_ADDS)
def test_operations_are_twice_the_published_multiply_adds_but_for_padding(name):
    model = _published(name)
    found = cost.forward_flops(model, (224, 224, 3)) / (2 * MULTIPLY_ADDS[name])
    assert 0.92 < found < 1.02


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_those_of_the_architecture(name):
    assert cost.kernel_counts(_published(name)) == KERNELS[name]


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
    assert (found.parameters, found.convolutions, found.fully_connected) == (8, 0, 1)
    # The two features' mean.
    assert found.activation_bytes == 5 * 4


def test_network_that_fails_is_named_in_one_error():
    with pytest.raises(UserError, match=r"Refuses cannot read .* 8x4x1: TypeError: not today"):
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
    assert found["flops"] == expected.flops
    assert found["activation_bytes"] == expected.activation_bytes


@pytest.mark.exhaustive
def test_numbers_do_not_depend_on_devices_and_fit_80_columns(capsys):
    arguments = ("--network", "dscint", "--network", "resnet18")
    expected = _json(capsys, *arguments)
    assert jax.device_count() > 1
    environment = {**os.environ, "COLUMNS": "80"}
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
            assert "20 + 1" in done.stdout


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
    with pytest.raises(UserError, match=message):
        command.main(list(arguments))


@pytest.mark.exhaustive
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
