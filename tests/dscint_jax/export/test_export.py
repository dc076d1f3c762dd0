import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from flax import nnx

from dscint_jax import models
from dscint_jax.evaluate.restored import load_weights
from dscint_jax.export.__main__ import main
from dscint_jax.export.model_file import export
from dscint_jax.training.step import split_network
from dscint_jax.weights.export_torch import torch_state_dict, write_safetensors
from dscint_jax.weights.import_torch import import_weights
from tfds_builder.commandline.errors import UserError

DSCINT = {
    "widths": (4, 6),
    "strides": (2, 1),
    "pool_after": (),
    "attention_after": 2,
    "regions": (2, 2),
    "hidden": 8,
}
NETWORKS = {
    "dscint": DSCINT,
    "resnet18": {},
    "dual_view": {"encoder": "dscint", "encoder_options": DSCINT, "attention_hidden": 4},
}


def _network(name, seed):
    """A network with random values everywhere, also where a fresh one has zeros and ones."""
    random = np.random.default_rng(seed)

    def draw(leaf):
        values = random.uniform(0.5, 1.5, leaf.shape)
        if len(leaf.shape) > 1:
            values = random.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return jnp.array(values, jnp.float32)

    def build():
        return models.build(name, num_classes=4, rngs=nnx.Rngs(params=0), options=NETWORKS[name])

    structure, state = nnx.split(nnx.eval_shape(build))
    return nnx.merge(structure, jax.tree.map(draw, state))


def _state_dict(network):
    _, _, params, batch_stats = split_network(network)
    return torch_state_dict(params, batch_stats)


@pytest.mark.parametrize("name", NETWORKS)
def test_import_of_an_export_is_the_same_network_and_its_export_the_same_file(tmp_path, name):
    first, second = _network(name, seed=0), _network(name, seed=1)
    write_safetensors(tmp_path / "first.safetensors", _state_dict(first), {"network": name})
    import_weights(tmp_path / "first.safetensors", second)
    states = [nnx.to_flat_state(nnx.state(n, (nnx.Param, nnx.BatchStat))) for n in (first, second)]
    for (path, a), (same_path, b) in zip(*states, strict=True):
        assert path == same_path
        np.testing.assert_array_equal(a[...], b[...], err_msg=str(path))
    write_safetensors(tmp_path / "second.safetensors", _state_dict(second), {"network": name})
    files = [(tmp_path / f"{n}.safetensors").read_bytes() for n in ("first", "second")]
    assert files[0] == files[1]


def _metadata(path):
    with safetensors.safe_open(path, "np") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture
def alone(trained, tmp_path):
    """A finished run whose data set is gone."""
    workdir = tmp_path / "alone"
    shutil.copytree(trained, workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["dir"] = str(tmp_path / "nowhere")
    (workdir / "config.json").write_text(json.dumps(config))
    return workdir


def test_checkpoint_is_exported_without_its_data_set(alone, tmp_path, capsys, monkeypatch):
    out = tmp_path / "new" / "dscint.safetensors"
    monkeypatch.setattr(sys, "argv", ["export", "--workdir", str(alone), "--out", str(out)])
    main()
    assert "tensors of dscint at step" in capsys.readouterr().out
    metadata, tensors = _metadata(out)
    weights = load_weights(alone, checkpoint="best", num_classes=4)
    expected = torch_state_dict(weights.params, weights.batch_stats)
    assert tensors.keys() == expected.keys()
    for name, values in tensors.items():
        np.testing.assert_array_equal(values, expected[name])
    attempt = json.loads((alone / "provenance.json").read_text())[-1]
    classes = ["normal", "metastasis", "arthritis", "thyroid_carcinoma"]
    assert json.loads(metadata["classes"]) == classes
    assert metadata["network"] == "dscint"
    assert metadata["step"] == str(weights.step)
    assert metadata["dataset_fingerprint"] == attempt["dataset_fingerprint"]
    assert metadata["input"].startswith("min(sqrt(counts / scale), 3.0), counts summed over")
    assert json.loads(metadata["recipe"])["model_options"]["widths"] == [8, 8, 16]
    assert not any("nowhere" in text for text in metadata.values())
    assert metadata["licence"].startswith("not stated; that of the software does not")
    assert metadata["temperature"] == "not fitted"
    assert "Tested: not yet" in metadata["card"]


@pytest.mark.parametrize(
    "given, licence, text",
    [
        ("cc-by-nc-4.0", "CC-BY-NC-4.0", "https://spdx.org/licenses/CC-BY-NC-4.0.html"),
        (
            "MIT OR LicenseRef-Hospital-B",
            "MIT OR LicenseRef-Hospital-B",
            "https://spdx.org/licenses/MIT.html",
        ),
        ("LicenseRef-Hospital-B", "LicenseRef-Hospital-B", None),
    ],
)
def test_licence_of_the_weights_stands_in_the_file_as_spdx_has_it(
    given, licence, text, alone, tmp_path
):
    export(alone, tmp_path / "dscint.safetensors", licence=given)
    metadata, _ = _metadata(tmp_path / "dscint.safetensors")
    assert metadata["licence"] == licence
    assert metadata.get("licence_text") == text
    assert f"Licence of the weights: {licence}." in metadata["card"]


def test_licence_that_spdx_does_not_know_is_one_line(alone, tmp_path):
    with pytest.raises(UserError, match="--licence free for all is no SPDX licence expression"):
        export(alone, tmp_path / "dscint.safetensors", licence="free for all")
    assert not (tmp_path / "dscint.safetensors").exists()


def test_checkpoints_of_other_steps_are_other_weights(alone, tmp_path):
    files = {}
    for checkpoint in ("latest", "12"):
        out = tmp_path / f"{checkpoint}.safetensors"
        assert "at step 12" in export(alone, out, checkpoint=checkpoint)
        files[checkpoint] = out.read_bytes()
    assert files["latest"] == files["12"]
    with pytest.raises(UserError, match="--checkpoint 3"):
        export(alone, tmp_path / "3.safetensors", checkpoint="3")


def test_file_that_exists_is_replaced_only_when_asked_to(alone, tmp_path):
    out = tmp_path / "dscint.safetensors"
    out.write_text("precious")
    with pytest.raises(UserError, match=r"dscint.safetensors exists; .* --overwrite"):
        export(alone, out, checkpoint="latest")
    assert out.read_text() == "precious"
    export(alone, out, checkpoint="latest", overwrite=True)
    assert _metadata(out)[0]["network"] == "dscint"


@pytest.mark.parametrize(
    "out, expected",
    [
        ("dscint.pth", r"must end in \.safetensors"),
        ("folder.safetensors", "is a folder"),
        ("file/dscint.safetensors", "cannot be written"),
        (f"{'long' * 99}.safetensors", "cannot be written"),
    ],
)
def test_place_that_cannot_be_written_is_named(alone, tmp_path, out, expected):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file").write_text("a file")
    with pytest.raises(UserError, match=expected):
        export(alone, tmp_path / out, checkpoint="latest")


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("provenance.json", "[]", "names no classes"),
        ("provenance.json", "{}", "does not list the attempts"),
        ("provenance.json", "[{}]", "does not list the attempts"),
        ("config.json", "[1]", "is no config of a run"),
        ("config.json", '{"data": 3}', "is no config of a run"),
        ("config.json", '{"model": "dscint", "model_options": 3}', "is no config of a run"),
        ("config.json", "{}", "config.json is no config of a run"),
    ],
)
def test_damaged_work_directory_is_named(alone, tmp_path, file, text, expected):
    (alone / file).write_text(text)
    with pytest.raises(UserError, match=expected):
        export(alone, tmp_path / "dscint.safetensors", checkpoint="latest")


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UserError, match="the disk is full"):
        write_safetensors(tmp_path / "w.safetensors", {"a": np.ones(3, "f4")}, {})
    assert list(tmp_path.iterdir()) == []


def _torch_resnet18(torch):
    """ResNet-18 by torchvision's names."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, inputs, width, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.downsample = (
                nn.Sequential(
                    nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
                )
                if stride > 1
                else None
            )

        def forward(self, x):
            shortcut = x if self.downsample is None else self.downsample(x)
            x = self.bn1(self.conv1(x)).relu()
            return (self.bn2(self.conv2(x)) + shortcut).relu()

    class ResNet18(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(64)
            for n, (inputs, width) in enumerate(((64, 64), (64, 128), (128, 256), (256, 512)), 1):
                first = Block(inputs, width, 1 if n == 1 else 2)
                setattr(self, f"layer{n}", nn.Sequential(first, Block(width, width, 1)))
            self.fc = nn.Linear(512, 4)

        def forward(self, x):
            x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
            for n in range(1, 5):
                x = getattr(self, f"layer{n}")(x)
            return self.fc(x.mean((2, 3)))

    return ResNet18().eval()


def test_exported_resnet18_gives_the_same_logits_in_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    import safetensors.torch

    ours, theirs = _network("resnet18", seed=0), _torch_resnet18(torch)
    write_safetensors(tmp_path / "resnet18.safetensors", _state_dict(ours), {"format": "pt"})
    loaded = theirs.load_state_dict(
        safetensors.torch.load_file(tmp_path / "resnet18.safetensors"), strict=True
    )
    assert not loaded.missing_keys
    images = np.random.default_rng(2).random((2, 64, 48, 1), np.float32)
    ours.eval()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(ours(jnp.array(images)), expected, rtol=1e-3, atol=1e-5)
