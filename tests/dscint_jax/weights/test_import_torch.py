import argparse
import json
import os
import pickle
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from flax import nnx

from dscint_jax import models
from dscint_jax.evaluate.restored import load_weights
from dscint_jax.models.layers import BatchNorm, Conv
from dscint_jax.training.experiment import make_experiment
from dscint_jax.training.train import train
from dscint_jax.weights.export_torch import torch_state_dict, write_safetensors
from dscint_jax.weights.import_torch import import_weights
from dscint_jax.weights.torch_layout import named_weights
from tfds_builder.commandline.errors import UserError

DSCINT = {
    "widths": (4, 6),
    "strides": (2, 1),
    "pool_after": (),
    "attention_after": 2,
    "regions": (2, 2),
    "hidden": 8,
}


class Small(nnx.Module):
    """A convolution, BatchNorm, a linear layer."""

    STEM, HEAD = "conv1", "fc"

    def __init__(self, *, num_classes=4, in_channels=1, seed=0):
        rngs = nnx.Rngs(params=seed)
        self.conv1 = Conv(in_channels, 5, (3, 2), dtype=jnp.float32, rngs=rngs)
        self.bn1 = BatchNorm(5, dtype=jnp.float32, rngs=rngs)
        self.fc = nnx.Linear(5, num_classes, rngs=rngs)

    def __call__(self, images, *, rngs=None):
        return self.fc(self.bn1(self.conv1(images)).mean((1, 2)))


def _random(shapes, seed=0):
    random = np.random.default_rng(seed)
    return {name: random.uniform(0.5, 2, shape).astype("f4") for name, shape in shapes.items()}


def _small_file(*, num_classes=4, in_channels=1, seed=0):
    vectors = ("weight", "bias", "running_mean", "running_var")
    shapes = {
        "conv1.weight": (5, in_channels, 3, 2),
        **{f"bn1.{name}": (5,) for name in vectors},
        "fc.weight": (num_classes, 5),
        "fc.bias": (num_classes,),
    }
    return _random(shapes, seed)


def _write(path, tensors):
    safetensors.numpy.save_file(tensors, path)
    return path


def _weights(network):
    return {name: weight.to_torch() for name, weight in named_weights(nnx.state(network)).items()}


def _assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def _dual_view(seed=0):
    options = {"encoder": "dscint", "encoder_options": DSCINT, "attention_hidden": 4}
    return models.build("dual_view", num_classes=4, rngs=nnx.Rngs(params=seed), options=options)


def _dscint(seed=0):
    return models.build("dscint", num_classes=4, rngs=nnx.Rngs(params=seed), options=DSCINT)


def test_kernels_are_turned_and_leaves_renamed(tmp_path):
    tensors, network = _small_file(), Small()
    report = import_weights(_write(tmp_path / "small.safetensors", tensors), network)
    kernel = tensors["conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(network.conv1.kernel[...], kernel)
    np.testing.assert_array_equal(network.fc.kernel[...], tensors["fc.weight"].T)
    np.testing.assert_array_equal(network.fc.bias[...], tensors["fc.bias"])
    np.testing.assert_array_equal(network.bn1.scale[...], tensors["bn1.weight"])
    np.testing.assert_array_equal(network.bn1.bias[...], tensors["bn1.bias"])
    np.testing.assert_array_equal(network.bn1.mean[...], tensors["bn1.running_mean"])
    np.testing.assert_array_equal(network.bn1.var[...], tensors["bn1.running_var"])
    assert str(report) == "small.safetensors: 7 tensors loaded into Small"


@pytest.mark.parametrize("dtype", ["float16", jnp.bfloat16, "float64"])
def test_every_floating_type_becomes_float32(tmp_path, dtype):
    tensors = {name: values.astype(dtype) for name, values in _small_file().items()}
    network = Small()
    import_weights(_write(tmp_path / "small.safetensors", tensors), network)
    _assert_same(_weights(network), {n: t.astype("f4") for n, t in sorted(tensors.items())})


def test_whole_numbers_are_passed_over(tmp_path):
    tensors = _small_file() | {"bn1.num_batches_tracked": np.array(7), "step": np.array(3)}
    report = import_weights(_write(tmp_path / "small.safetensors", tensors), Small())
    assert (report.loaded, report.left_out) == (7, ())


def test_colour_stem_answers_as_to_a_grey_picture_in_all_three_channels(tmp_path):
    path = _write(tmp_path / "colour.safetensors", _small_file(in_channels=3))
    colour, grey = Small(in_channels=3), Small(in_channels=1)
    assert import_weights(path, colour).folded == ""
    report = import_weights(path, grey)
    assert report.folded == "conv1"
    assert "conv1 summed over 3 colours" in str(report)
    colour.eval(), grey.eval()
    images = jnp.array(np.random.default_rng(1).random((2, 8, 6, 1), np.float32))
    expected = colour(jnp.tile(images, (1, 1, 1, 3)))
    np.testing.assert_allclose(grey(images), expected, rtol=1e-5)


def test_standardised_stem_is_not_summed_over_colours(tmp_path):
    options = {**DSCINT, "in_channels": 3}
    colour = models.build("dscint", num_classes=4, rngs=nnx.Rngs(params=0), options=options)
    path = _write(tmp_path / "colour.safetensors", _weights(colour))
    with pytest.raises(UserError, match=r"of another shape: convolutions\.0\.conv\.weight"):
        import_weights(path, _dscint())


def test_head_of_other_classes_stays_as_it_was(tmp_path):
    tensors, network = _small_file(num_classes=1000), Small(seed=3)
    before = _weights(network)
    report = import_weights(_write(tmp_path / "small.safetensors", tensors), network)
    after = _weights(network)
    head = {"fc.weight", "fc.bias"}
    _assert_same({n: after[n] for n in head}, {n: before[n] for n in head})
    _assert_same(
        {n: after[n] for n in after.keys() - head}, {n: tensors[n] for n in after if n not in head}
    )
    assert (report.head_classes, report.fresh, report.loaded) == (1000, ("fc",), 5)
    assert "fc starts anew, as the file has 1000 classes" in str(report)


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "model.", "net.", "backbone.", "encoder.", "densenet121.", "0."),
        *("module._orig_mod.", "module.encoder_q.", "state_dict.model.backbone.encoder.net."),
    ],
)
def test_network_is_found_under_any_prefix(tmp_path, prefix):
    tensors, network = _small_file(), Small()
    wrapped = {prefix + name: values for name, values in tensors.items()}
    report = import_weights(_write(tmp_path / "small.safetensors", wrapped), network)
    _assert_same(_weights(network), dict(sorted(tensors.items())))
    assert (report.prefix, report.left_out, report.fresh) == (prefix, (), ())
    assert f"found under '{prefix}'" in str(report)


NO_HEAD = {name: values for name, values in _small_file().items() if not name.startswith("fc.")}
BESIDE_THE_BODY = {
    "no head": ({}, ()),
    "a small sequence": ({"fc.0.weight": (3, 5), "fc.2.weight": (2, 3)}, ("fc",)),
    "a head of other inputs": ({"fc.weight": (4, 6), "fc.bias": (4,)}, ("fc",)),
    "half a head": ({"fc.bias": (4,)}, ("fc",)),
    "a projector": (
        {"projector.0.weight": (5, 5), "projector.1.running_mean": (5,)},
        ("projector",),
    ),
    "a queue and thresholds": ({"queue": (5, 9), "op_threshs": (18,)}, ("op_threshs", "queue")),
}


@pytest.mark.parametrize("prefix", ["", "model.backbone."])
@pytest.mark.parametrize("case", BESIDE_THE_BODY)
def test_body_is_loaded_whatever_head_the_file_has(tmp_path, case, prefix):
    shapes, left_out = BESIDE_THE_BODY[case]
    # Thresholds of torchxrayvision are not numbers where a data set lacks a finding.
    others = {name: np.full(shape, np.nan, "f4") for name, shape in shapes.items()}
    given = {prefix + name: values for name, values in (NO_HEAD | others).items()}
    network = Small(seed=3)
    before = _weights(network)
    report = import_weights(_write(tmp_path / "body.safetensors", given), network)
    after = _weights(network)
    _assert_same({n: after[n] for n in NO_HEAD}, NO_HEAD)
    _assert_same(*({n: w[n] for n in ("fc.weight", "fc.bias")} for w in (after, before)))
    assert (report.loaded, report.fresh, report.left_out) == (5, ("fc",), left_out)
    assert "fc starts anew" in str(report)


def test_what_trained_the_network_is_left_out_by_name(tmp_path):
    tensors, other, network = _small_file(), _small_file(seed=9), Small()
    given = {f"module.encoder_q.{name}": values for name, values in tensors.items()}
    # The running mean, a wider network, a loss.
    given |= {f"module.encoder_k.{name}": values for name, values in other.items()}
    given |= {f"module.wide.{n}": np.ones((*t.shape, 2), "f4") for n, t in tensors.items()}
    given |= {"module.queue": np.ones((5, 7), "f4"), "criterion.weight": np.ones(2, "f4")}
    report = import_weights(_write(tmp_path / "moco.safetensors", given), network)
    _assert_same(_weights(network), dict(sorted(tensors.items())))
    assert report.prefix == "module.encoder_q."
    assert report.left_out == ("criterion", "encoder_k", "queue", "wide")
    assert "criterion, encoder_k, queue and 1 more of the file left out" in str(report)


def test_two_networks_in_a_file_are_refused_by_name(tmp_path):
    given = {f"{p}.{name}": t for p in ("left", "right") for name, t in _small_file().items()}
    with pytest.raises(UserError, match=r"holds Small 2 times, under left\., right\.; save"):
        import_weights(_write(tmp_path / "two.safetensors", given), Small())


def _resnet(blocks, classes=0):
    """Shapes of a ResNet of basic blocks, written down from torchvision's state dict."""
    norm = {"weight": (), "bias": (), "running_mean": (), "running_var": ()}
    shapes = {"conv1.weight": (64, 3, 7, 7)} | {f"bn1.{n}": (64,) for n in norm}
    inputs = 64
    for layer, (width, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True), 1):
        for block in range(count):
            path = f"layer{layer}.{block}"
            shapes[f"{path}.conv1.weight"] = (width, inputs, 3, 3)
            shapes[f"{path}.conv2.weight"] = (width, width, 3, 3)
            shapes |= {f"{path}.bn{i}.{n}": (width,) for i in (1, 2) for n in norm}
            if inputs != width:
                shapes[f"{path}.downsample.0.weight"] = (width, inputs, 1, 1)
                shapes |= {f"{path}.downsample.1.{n}": (width,) for n in norm}
            inputs = width
    if classes:
        shapes |= {"fc.weight": (classes, 512), "fc.bias": (classes,)}
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def resnet18():
    build = lambda: models.build("resnet18", num_classes=4, rngs=nnx.Rngs(params=0))  # noqa: E731
    # Drawing initial weights would take longer than all that is done with them.
    graph, shapes = nnx.split(nnx.eval_shape(build))
    return nnx.merge(graph, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))


CHILDREN = {"conv1": "0", "bn1": "1", **{f"layer{n}": str(n + 3) for n in range(1, 5)}}


@pytest.mark.parametrize("blocks, taken", [((2, 2, 2, 2), True), ((3, 4, 6, 3), False)])
@pytest.mark.parametrize("by_place", [False, True])
def test_deeper_network_of_the_same_family_is_refused(tmp_path, resnet18, blocks, taken, by_place):
    tensors = _resnet(blocks)
    if by_place:
        places = {n: n.partition(".")[0] for n in tensors}
        tensors = {
            f"backbone.{CHILDREN[places[n]]}{n.removeprefix(places[n])}": t
            for n, t in tensors.items()
        }
    path = _write(tmp_path / "resnet.safetensors", tensors)
    if taken:
        assert import_weights(path, resnet18).loaded == 100
    else:
        with pytest.raises(UserError, match=r"not in the network: .*2\."):
            import_weights(path, resnet18)


class Inner(nnx.Module):
    """A network whose own submodule has the name of a wrapper."""

    def __init__(self):
        self.model = Small()

    def __call__(self, images, *, rngs=None):
        return self.model(images)


@pytest.mark.parametrize("wrapper", ["", "module.", "model.", "_orig_mod.module."])
def test_submodule_with_a_wrappers_name_is_no_wrapper(tmp_path, wrapper):
    tensors, network = _small_file(), Inner()
    wrapped = {f"{wrapper}model.{name}": values for name, values in tensors.items()}
    import_weights(_write(tmp_path / "inner.safetensors", wrapped), network)
    _assert_same(_weights(network.model), dict(sorted(tensors.items())))


class Tempered(Small):
    """A network with a parameter that is a single number."""

    def __init__(self, temperature):
        super().__init__()
        self.temperature = nnx.Param(jnp.float32(temperature))


def test_single_number_is_exported_and_imported_as_one(tmp_path):
    first, second = Tempered(3.0), Tempered(1.0)
    tensors = _weights(first)
    assert tensors["temperature"].shape == ()
    write_safetensors(tmp_path / "tempered.safetensors", tensors, {})
    import_weights(tmp_path / "tempered.safetensors", second)
    assert second.temperature[...] == 3.0
    _assert_same(_weights(second), tensors)


def test_names_that_a_terminal_would_obey_are_escaped(tmp_path):
    tensors = {f"a\x1b[2J.{n}": t * np.float32(np.nan) for n, t in _small_file().items()}
    path = _write(tmp_path / "w.safetensors", tensors)
    with pytest.raises(UserError, match=r"'a\\x1b\[2J\.bn1.bias' holds values that are not fin"):
        import_weights(path, Small())


class DenseLayer(nnx.Module):
    def __init__(self):
        self.norm1 = BatchNorm(2, dtype=jnp.float32, rngs=nnx.Rngs(0))
        self.conv1 = Conv(2, 3, 1, dtype=jnp.float32, rngs=nnx.Rngs(0))
        self.norm2 = BatchNorm(3, dtype=jnp.float32, rngs=nnx.Rngs(0))
        self.conv2 = Conv(3, 2, 3, dtype=jnp.float32, rngs=nnx.Rngs(0))


class Dense(nnx.Module):
    def __init__(self):
        self.denselayer1 = DenseLayer()


OTHER_NAMES = {
    "torchvision's files": {"norm1": "norm.1", "norm2": "norm.2", "conv1": "conv.1"},
    "MONAI": {"norm": "layers.norm", "conv": "layers.conv"},
}


@pytest.mark.parametrize("origin", OTHER_NAMES)
def test_other_names_of_densenets_layers_are_known(tmp_path, origin):
    network = Dense()
    tensors = _random({name: values.shape for name, values in _weights(network).items()})
    other = {}
    for name, values in tensors.items():
        for ours, theirs in OTHER_NAMES[origin].items():
            name = name.replace(ours, theirs)
        other[f"features.{name}"] = values
    assert len(other.keys() - tensors.keys()) == 10
    import_weights(_write(tmp_path / "dense.safetensors", other), network)
    _assert_same(_weights(network), tensors)


class Classifier(nnx.Module):
    """VGG's fully connected layers, for maps of 2x2 pixels and 3 channels."""

    HEAD = "classifier.6"

    def __init__(self, num_classes):
        linear = nnx.Linear
        rngs = nnx.Rngs(0)
        self.classifier = nnx.List(
            [
                *(linear(12, 5, rngs=rngs), nnx.relu, nnx.relu),
                *(linear(5, 5, rngs=rngs), nnx.relu, nnx.relu),
                linear(5, num_classes, rngs=rngs),
            ]
        )


@pytest.mark.parametrize("num_classes", [4, 7])
def test_timms_vgg_has_its_linear_layers_as_convolutions(tmp_path, num_classes):
    shapes = {
        "pre_logits.fc1.weight": (5, 3, 2, 2),
        "pre_logits.fc1.bias": (5,),
        "pre_logits.fc2.weight": (5, 5, 1, 1),
        "pre_logits.fc2.bias": (5,),
        "head.fc.weight": (7, 5),
        "head.fc.bias": (7,),
    }
    tensors, network = _random(shapes), Classifier(num_classes)
    report = import_weights(_write(tmp_path / "vgg.safetensors", tensors), network)
    first, second = tensors["pre_logits.fc1.weight"], tensors["pre_logits.fc2.weight"]
    # A row of the kernel is one channel and pixel of the map, channels first.
    np.testing.assert_array_equal(network.classifier[0].kernel[...], first.reshape(5, 12).T)
    np.testing.assert_array_equal(network.classifier[3].kernel[...], second[:, :, 0, 0].T)
    assert report.head_classes == (7 if num_classes == 4 else 0)


def test_file_of_the_encoders_network_is_loaded_into_the_encoder(tmp_path):
    path = tmp_path / "dscint.safetensors"
    tensors, network = _weights(_dscint(seed=1)), _dual_view(seed=2)
    write_safetensors(path, tensors, {})
    before = _weights(network)
    report = import_weights(path, network, name="dual_view")
    after = _weights(network)
    for name, values in after.items():
        inside = name.startswith("encoder.")
        expected = tensors[name.removeprefix("encoder.")] if inside else before[name]
        np.testing.assert_array_equal(values, expected, err_msg=name)
    assert report.left_out == ("head", "hidden")
    assert report.fresh == ("attention", "head", "view_embedding")
    assert "loaded into the encoder of dual_view" in str(report)


def test_other_file_than_the_encoders_network_is_refused(tmp_path):
    path = _write(tmp_path / "small.safetensors", _small_file())
    with pytest.raises(UserError, match="does not fit the encoder of DualView; not in the file"):
        import_weights(path, _dual_view())


def _without(name):
    tensors = _small_file()
    del tensors[name]
    return tensors


def _with(**changed):
    return _small_file() | {name.replace("__", "."): values for name, values in changed.items()}


UNFIT = {
    "lacks a tensor": (
        _without("bn1.bias"),
        ["not in the file as floating-point numbers: bn1.bia"],
    ),
    "has one more": (_with(bn1__gain=np.ones(5, "f4")), ["not in the network: bn1.gain"]),
    "other shape": (
        _with(conv1__weight=np.ones((5, 1, 3, 3), "f4")),
        ["conv1.weight (5, 1, 3, 3) for (5, 1, 3, 2)"],
    ),
    "stem of two channels": (
        _with(conv1__weight=np.ones((5, 2, 3, 2), "f4")),
        ["conv1.weight (5, 2, 3, 2) for (5, 1, 3, 2)"],
    ),
    "scalar": (_with(bn1__bias=np.array(1.0, "f4")), ["bn1.bias () for (5,)"]),
    "other network": (
        _random({f"layer{n}.weight": (3,) for n in range(9)}),
        [
            "not in the file as floating-point numbers: bn1.bias, bn1.running_mean",
            "and 2 more",
        ],
    ),
    "not a number": (
        _with(bn1__running_var=np.array([1, 1, np.nan, 1, 1], "f4")),
        ["'bn1.running_var' holds values that are not finite"],
    ),
    "negative variance": (
        _with(bn1__running_var=np.array([1, 1, -1, 1, 1], "f4")),
        ["'bn1.running_var' holds negative variances"],
    ),
    "too large for float32": (
        _with(fc__bias=np.array([1, 1e300, 1, 1])),
        ["'fc.bias' holds values that are not finite"],
    ),
    "integers": (_with(bn1__bias=np.ones(5, "i4")), ["as floating-point numbers: bn1.bias"]),
    "two spellings": (
        {**_weights(Dense()), "denselayer1.norm.1.weight": np.ones(2, "f4")},
        ["not in the network: denselayer1.norm"],
    ),
    "no tensors": ({}, ["holds no floating-point tensors"]),
}


@pytest.mark.parametrize("case", UNFIT)
def test_file_that_does_not_fit_is_refused_in_one_line_and_changes_nothing(tmp_path, case):
    tensors, expected = UNFIT[case]
    path = _write(tmp_path / "given.safetensors", tensors)
    network = Dense() if case == "two spellings" else Small(seed=4)
    before = _weights(network)
    with pytest.raises(UserError) as raised:
        import_weights(path, network)
    for words in ("given.safetensors", *expected):
        assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    _assert_same(_weights(network), before)


def _truncated(path):
    data = _write(path, _small_file()).read_bytes()
    path.write_bytes(data[:-5])


ILL_FORMED = {
    "missing": ("w.safetensors", lambda path: None, "is missing"),
    "a folder": ("w.safetensors", lambda path: path.mkdir(), "cannot be read: Is a directory"),
    "HDF5": ("w.h5", lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" * 9), "no file of safet"),
    "truncated": ("w.safetensors", _truncated, "is damaged, or no safetensors file"),
    "text": ("w.safetensors", lambda path: path.write_text("weights " * 99), "is damaged"),
    "empty": ("w.safetensors", lambda path: path.write_bytes(b""), "is damaged"),
}


@pytest.mark.parametrize("case", ILL_FORMED)
def test_ill_formed_file_is_refused_in_one_line(tmp_path, case):
    name, make, expected = ILL_FORMED[case]
    make(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} .*{expected}") as raised:
        import_weights(tmp_path / name, Small())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "module, expected",
    [(None, "is not installed"), (types.SimpleNamespace(__version__="2.9.1+cpu"), "is too old")],
)
def test_pickles_without_a_recent_pytorch_say_what_to_install(
    tmp_path, monkeypatch, module, expected
):
    monkeypatch.setitem(sys.modules, "torch", module)
    (tmp_path / "w.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=expected) as raised:
        import_weights(tmp_path / "w.pth", Small())
    assert "install PyTorch 2.10 or newer" in str(raised.value)
    assert "convert the file to .safetensors" in str(raised.value)


def _torch_file(path, wrap=lambda state_dict: state_dict, archive=True):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(values) for name, values in _small_file().items()}
    held = wrap(tensors | {"bn1.num_batches_tracked": torch.tensor(3)})
    torch.save(held, path, _use_new_zipfile_serialization=archive)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin", ".pth.tar", ""])
@pytest.mark.parametrize("write", [_torch_file, lambda path: _write(path, _small_file())])
def test_files_are_known_by_what_they_hold_not_by_their_suffix(tmp_path, suffix, write):
    network, path = Small(seed=4), tmp_path / f"small{suffix}"
    write(path)
    import_weights(path, network)
    _assert_same(_weights(network), dict(sorted(_small_file().items())))


def _lightning(tensors):
    """What a Lightning checkpoint holds, as its documentation lists it."""
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.1",
        "state_dict": {f"net.{name}": tensor for name, tensor in tensors.items()},
        "optimizer_states": [{"state": {0: {"exp_avg": tensors["fc.weight"]}}}],
        "hyper_parameters": {"lr": 1e-3, "name": "small"},
    }


AROUND = {
    "state_dict": lambda tensors: {"state_dict": tensors, "epoch": 3, "args": argparse.Namespace()},
    "model": lambda tensors: {"model": tensors, "optimizer": {"state": {0: tensors["fc.bias"]}}},
    "model_state_dict": lambda tensors: {"model_state_dict": tensors},
    "state": lambda tensors: {"run": {"state": {"network": tensors}}},
    "beside numbers": lambda tensors: tensors | {"epoch": 3},
    "in itself": lambda tensors: _in_itself(tensors),
    "lightning": _lightning,
    "running mean": lambda t: {"state_dict": t, "state_dict_ema": {n: 2 * v for n, v in t.items()}},
}


@pytest.mark.parametrize("protocol", ["archive", "pickle"])
@pytest.mark.parametrize("around", AROUND)
def test_pickled_state_dict_is_read_from_a_training_checkpoint(tmp_path, around, protocol):
    network, path = Small(seed=4), tmp_path / "small.ckpt"
    _torch_file(path, AROUND[around], archive=protocol == "archive")
    import_weights(path, network)
    _assert_same(_weights(network), dict(sorted(_small_file().items())))


def test_pickled_half_precision_becomes_float32(tmp_path):
    torch = pytest.importorskip("torch")
    network = Small()
    halved = {n: torch.from_numpy(t).bfloat16() for n, t in _small_file().items()}
    torch.save(halved, tmp_path / "small.pth")
    import_weights(tmp_path / "small.pth", network)
    for name, values in _weights(network).items():
        np.testing.assert_array_equal(values, halved[name].float().numpy())


class Payload:
    """What a hostile pickle does when it is loaded."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def _pickle_of_code(path):
    _torch_file(path, lambda tensors: tensors | {"fc.bias": Payload(path.with_name("trace"))})


def _plain_pickle_of_code(path):
    path.write_bytes(pickle.dumps(Payload(path.with_name("trace"))))


def _cut(path):
    data = _torch_file(path).read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _in_itself(tensors):
    tensors["model"] = tensors
    return tensors


BAD_PICKLES = {
    "code": (_pickle_of_code, "holds more than tensors .*mkdir"),
    "code alone": (_plain_pickle_of_code, "w.pth"),
    "truncated": (_cut, "is damaged, or no file of torch.save"),
    "text": (lambda path: path.write_text("weights " * 99), "is damaged"),
    "empty": (lambda path: path.write_bytes(b""), "is damaged"),
    "names that are no text": (
        lambda path: _torch_file(path, lambda tensors: dict(enumerate(tensors.values()))),
        "does not fit Small",
    ),
    "a list": (lambda path: _torch_file(path, lambda tensors: [1, 2]), "holds a list"),
    "numbers repeated without end": (
        lambda path: _torch_file(
            path,
            lambda tensors: (
                tensors | {"bn1.bias": tensors["bn1.bias"][:1].as_strided((10**6, 10**7), (0, 0))}
            ),
        ),
        r"of another shape: bn1.bias \(1000000, 10000000\)",
    ),
    "a sparse tensor": (
        lambda path: _torch_file(
            path, lambda tensors: tensors | {"fc.bias": tensors["fc.bias"].to_sparse()}
        ),
        "'fc.bias' is not a plain one",
    ),
    "no tensors": (lambda path: _torch_file(path, lambda tensors: {}), "holds no floating-point"),
}


@pytest.mark.parametrize("case", BAD_PICKLES)
def test_bad_pickle_is_refused_in_one_line_and_runs_nothing(tmp_path, case):
    pytest.importorskip("torch")
    make, expected = BAD_PICKLES[case]
    make(tmp_path / "w.pth")
    with pytest.raises(UserError, match=expected) as raised:
        import_weights(tmp_path / "w.pth", Small())
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


@pytest.fixture
def started(config, tmp_path):
    """A config whose run starts from a file of other weights, and these weights."""
    config = config.replaced({"seed": 5})
    other = make_experiment(config, (9, 9, 9, 9)).initial_state()
    tensors = torch_state_dict(other.params, other.batch_stats)
    random = _random({name: values.shape for name, values in tensors.items()})
    tensors |= {name: t for name, t in random.items() if "running" in name}
    config = config.replaced(
        {
            "seed": 0,
            "init_from": str(tmp_path / "weights.safetensors"),
            "steps": 6,
            "evaluate_every": 2,
            "keep_last": 3,
        }
    )
    write_safetensors(tmp_path / "weights.safetensors", tensors, {})
    return config, tensors


def _checkpoint(workdir, step):
    folder = workdir / "checkpoints" / str(step)
    with ocp.StandardCheckpointer() as checkpointer:
        return {item: checkpointer.restore(folder / item) for item in ("model", "optimizer")}


@pytest.mark.slow
def test_run_starts_from_the_weights_and_statistics_of_the_file(started, tmp_path):
    config, tensors = started
    state, report = make_experiment(config, (9, 9, 9, 9)).imported_state(
        tmp_path / "weights.safetensors"
    )
    _assert_same(torch_state_dict(state.params, state.batch_stats), tensors)
    assert int(state.step) == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.optimizer))
    assert report.network == "dscint"


@pytest.mark.exhaustive
def test_training_leaves_imported_weights_where_the_learning_rate_is_zero(
    started, tmp_path, capsys
):
    config, tensors = started
    config = config.replaced({"optimizer.learning_rate": 0.0, "steps": 2})
    train(config, tmp_path / "run")
    report = f"weights.safetensors: {len(tensors)} tensors loaded into dscint\n"
    assert report in capsys.readouterr().out
    trained = load_weights(tmp_path / "run", checkpoint="latest", num_classes=4)
    params = torch_state_dict(trained.params, nnx.State({}))
    _assert_same(params, {name: tensors[name] for name in params})


@pytest.mark.exhaustive
def test_resumed_run_does_not_need_the_file_and_ends_in_the_same_bits(started, tmp_path):
    config, _ = started
    run = tmp_path / "run"
    train(config, run)
    undisturbed = _checkpoint(run, 6)
    shutil.rmtree(run / "checkpoints" / "6")
    (tmp_path / "weights.safetensors").unlink()
    train(config, run)
    for first, second in zip(
        jax.tree.leaves(undisturbed), jax.tree.leaves(_checkpoint(run, 6)), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(first), np.asarray(second))
    attempts = json.loads((run / "provenance.json").read_text())
    assert [attempt["start_step"] for attempt in attempts] == [0, 4]
    assert attempts[0]["init_from"]["file"] == "weights.safetensors"
    assert len(attempts[0]["init_from"]["sha256"]) == 64
    assert attempts[1]["init_from"] is None


def test_file_that_does_not_fit_leaves_no_run(started, tmp_path):
    config, _ = started
    _write(tmp_path / "weights.safetensors", _small_file())
    with pytest.raises(UserError, match=r"weights.safetensors does not fit dscint; not in"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
