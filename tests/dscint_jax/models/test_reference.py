"""Networks against the logits of the reference implementations, by the importer of weight files."""

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from dscint_jax import models
from dscint_jax.weights.import_torch import import_weights
from tests.dscint_jax.models import reference

ALWAYS = "resnet18"
"""Enough in the usual run to see an importer or a layer that broke."""

NAMES = [
    name if name == ALWAYS else pytest.param(name, marks=pytest.mark.exhaustive)
    for name in reference.NAMES
]


def _build(network, **options):
    return models.build(
        network, num_classes=1000, rngs=nnx.Rngs(params=1), options={"in_channels": 3, **options}
    )


@pytest.mark.parametrize(
    "network",
    NAMES,
)
def test_logits_are_those_of_the_reference_implementation(network, tmp_path):
    golden = reference.load(network)
    path = tmp_path / f"{network}.safetensors"
    save_file(golden.state_dict(), path)
    model = _build(network)
    report = import_weights(path, model)
    path.unlink()
    model.eval()
    logits = np.asarray(nnx.jit(lambda model, images: model(images))(model, golden.images))
    difference = np.linalg.norm(logits - golden.logits) / np.linalg.norm(golden.logits)
    assert difference < 1e-4
    assert report.loaded == len(golden.shapes)
    parameters = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in parameters) == golden.parameters


def test_every_network_with_a_reference_is_compared():
    ours = {"dscint", "dual_view"}
    assert set(reference.NAMES) == set(models.NETWORKS) - ours
