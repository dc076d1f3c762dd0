"""Grad-CAM and gradient x input as the compiled step gives them; `training.step`."""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType

from dscint_jax import models
from dscint_jax.config import Augmentation
from dscint_jax.input_pipeline.normalise import normalise
from dscint_jax.mesh import replicate, shard_batch
from dscint_jax.training import parallel
from dscint_jax.training.losses import make_loss
from dscint_jax.training.state import TrainState
from dscint_jax.training.step import StepSpec, maps_step, split_network, train_step

CLASSES, CLIP = 4, 3.0
TINY = {"widths": (4, 6, 8), "strides": (2, 1, 1), "pool_after": (2,), "attention_after": 2}


def _options(name):
    if name == "dual_view":
        return {"encoder": "dscint", "encoder_options": TINY, "attention_hidden": 5}
    return TINY if name == "dscint" else {}


def _model(name, **options):
    model = models.build(
        name,
        num_classes=CLASSES,
        rngs=nnx.Rngs(params=jax.random.key(3)),
        options={**_options(name), **options},
    )
    # As if it had been trained: running statistics of its own.
    random = np.random.default_rng(4)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.BatchNorm):
            module.mean[...] = jnp.array(random.normal(0, 0.1, module.mean[...].shape), jnp.float32)
            module.var[...] = jnp.array(random.uniform(0.5, 2, module.var[...].shape), jnp.float32)
    return model


def _taken_apart(model):
    training, inference, params, batch_stats = split_network(model)
    spec = StepSpec(
        training=training,
        inference=inference,
        optimizer=optax.identity(),
        augmentation=Augmentation(),
        loss=make_loss(class_weights=(1.0,) * CLASSES),
        clip=CLIP,
        seed=0,
    )
    return spec, params, batch_stats


def _batch(size, shape=(32, 16), seed=0):
    random = np.random.default_rng(seed)
    counts = random.gamma(1, 8, (size, *shape[:-2], shape[-2] // 8, shape[-1] // 8, 1))
    return {
        "counts": random.poisson(counts.repeat(8, -3).repeat(8, -2)).astype(np.int32),
        "scale": random.uniform(5, 9, (size, *shape[:-2])).astype(np.float32),
        "label": random.integers(0, CLASSES, size).astype(np.int32),
        "mask": np.ones(size, bool),
    }


def _maps_of(model, batch):
    spec, params, batch_stats = _taken_apart(model)
    step = jax.jit(functools.partial(maps_step, spec=spec))
    return jax.tree.map(np.asarray, step(params, batch_stats, batch))


def _grad_cam(model, batch):
    return _maps_of(model, batch).grad_cam


def _by_hand(model, batch):
    """Equations 1 and 2 in loops; the gradient is that of the whole network by a shift of maps."""
    model.eval()
    cls, original = type(model), type(model).feature_maps
    images = normalise(jnp.array(batch["counts"]), jnp.array(batch["scale"]), clip=CLIP)
    structure, state = nnx.split(model)

    @jax.jit
    def gradient_and_maps(state, images):
        maps = original(nnx.merge(structure, state, copy=True), images)

        def logits(shift):
            with mock.patch.object(cls, "feature_maps", lambda self, x: original(self, x) + shift):
                return nnx.merge(structure, state, copy=True)(images)

        return jax.jacrev(logits)(jnp.zeros_like(maps)), maps

    jacobian, maps = (np.asarray(values, np.float64) for values in gradient_and_maps(state, images))
    heat = np.zeros(maps.shape[:-1])
    for n, label in enumerate(batch["label"]):
        gradients = jacobian[n, label, n]
        for view in np.ndindex(maps.shape[1:-3]):
            for channel in range(maps.shape[-1]):
                weight = gradients[view][..., channel].mean()
                heat[(n, *view)] += weight * maps[(n, *view)][..., channel]
    return np.maximum(heat, 0)


@pytest.mark.parametrize(
    "name",
    [
        *("dscint", "dual_view"),
        *(
            pytest.param(name, marks=pytest.mark.exhaustive)
            for name in ("alexnet", "vgg16_bn", "resnet18", "densenet121", "inception_v4")
        ),
    ],
)
def test_grad_cam_is_that_of_the_formula_for_every_family(name):
    size = (32, 16) if name in ("dscint", "dual_view") else (128, 64)
    batch = _batch(2, (2, *size) if name == "dual_view" else size)
    found, expected = _grad_cam(_model(name), batch), _by_hand(_model(name), batch)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert (expected.max((-2, -1)) > 0).any()
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4 * expected.max())


def test_a_missing_view_has_no_map_and_each_view_has_weights_of_its_own():
    batch = _batch(3, (2, 32, 16))
    batch["counts"][1, 0] = 0
    found = _grad_cam(_model("dual_view"), batch)
    assert not found[1, 0].any()
    np.testing.assert_allclose(
        found, _by_hand(_model("dual_view"), batch), rtol=2e-3, atol=1e-4 * found.max()
    )


def test_maps_are_of_evaluation_mode():
    batch = _batch(4)
    spec, params, batch_stats = _taken_apart(_model("dscint", dropout=0.5))
    step = jax.jit(functools.partial(maps_step, spec=spec))
    found = step(params, batch_stats, batch)
    # With batch statistics or dropout an image's map would depend on those beside it.
    for n in range(4):
        alone = step(params, batch_stats, {k: values[[n] * 4] for k, values in batch.items()})
        for one, all_maps in zip(jax.tree.leaves(alone), jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(one[0], all_maps[n], rtol=1e-3, atol=1e-5 * all_maps.max())
    # The running statistics are what images are normalised by.
    others = jax.tree.map(lambda values: 4 * values, batch_stats)
    changed = step(params, others, batch)
    assert not np.allclose(changed.grad_cam, found.grad_cam, rtol=0.01)
    assert not np.allclose(changed.gradient_input, found.gradient_input, rtol=0.01)


def test_map_is_of_the_class_that_is_asked_for():
    batch = _batch(2)
    maps = [_maps_of(_model("dscint"), batch | {"label": np.full(2, c, np.int32)}) for c in (0, 1)]
    for name in ("grad_cam", "gradient_input"):
        assert not np.allclose(*(getattr(each, name) for each in maps))


@pytest.mark.parametrize("name", ["dscint", "dual_view"])
def test_one_device_and_eight_give_the_same(name):
    batch, found = _batch(16, (2, 32, 16) if name == "dual_view" else (32, 16)), []
    spec, params, batch_stats = _taken_apart(_model(name))
    for devices in (1, 8):
        mesh = jax.make_mesh(
            (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
        )
        step = parallel.compile_inference(maps_step, spec, mesh)
        maps = step(*replicate((params, batch_stats), mesh), shard_batch(batch, mesh))
        assert all(each.sharding.is_fully_replicated for each in jax.tree.leaves(maps))
        found.append([np.asarray(each) for each in jax.tree.leaves(maps)])
    for one, eight in zip(*found, strict=True):
        np.testing.assert_allclose(eight, one, rtol=1e-4, atol=1e-6 * one.max())


def test_gradient_input_is_what_the_logit_has_of_each_pixel():
    batch = _batch(2)
    model = _model("dscint")
    found = _maps_of(model, batch).gradient_input
    model.eval()
    images = normalise(jnp.array(batch["counts"]), jnp.array(batch["scale"]), clip=CLIP)
    for n, label in enumerate(batch["label"]):
        top = np.unravel_index(found[n].argmax(), found[n].shape)
        # A small change of the pixel changes the logit by so much in proportion.
        change = 0.002 * images[n][top]
        logits = [
            float(model(images.at[(n, *top)].add(sign * change))[n, label]) for sign in (1, -1)
        ]
        assert (logits[0] - logits[1]) / 0.004 == pytest.approx(float(found[n][top]), rel=0.05)


class Spots(nnx.Module):
    """Class 0 is how much is bright, class 1 how much is dark, 2 and 3 are nothing."""

    def __init__(self, *, num_classes=CLASSES, rngs):
        self.head = nnx.Linear(2, num_classes, use_bias=False, rngs=rngs)
        self.head.kernel[...] = jnp.eye(2, num_classes)

    def feature_maps(self, images):
        return nnx.relu(jnp.concatenate([images - 2, 1 - images], -1))

    def classify(self, maps, images, *, rngs=None):
        return self.head(maps.mean((1, 2)))

    def __call__(self, images, *, rngs=None):
        return self.classify(self.feature_maps(images), images)


def test_planted_features_are_found_each_by_the_class_that_looks_for_it():
    counts = np.full((3, 32, 16, 1), 12, np.int32)
    counts[:, 5, 9], counts[:, 20, 2] = 40, 0
    batch = {
        "counts": counts,
        "scale": np.full(3, 6.0, np.float32),
        "label": np.array([0, 1, 2], np.int32),
        "mask": np.ones(3, bool),
    }
    found = _maps_of(Spots(rngs=nnx.Rngs(0)), batch)
    maps = found.grad_cam
    assert np.argwhere(maps[0]).tolist() == [[5, 9]]
    assert np.argwhere(maps[1]).tolist() == [[20, 2]]
    assert not maps[2].any()
    # A pixel that is dark has no part in the product of its gradient and its value.
    assert np.argwhere(found.gradient_input[0]).tolist() == [[5, 9]]
    assert not found.gradient_input[1:].any()


def _blobs(random, size, shape=(48, 32)):
    """Images of noise; those of class 1 have a bright blob, in the middle of the rows returned."""
    labels = np.arange(size, dtype=np.int32) % 2
    places = np.stack([random.integers(6, length - 6, size) for length in shape], 1)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    far = np.hypot(rows - places[:, :1, None], columns - places[:, 1:, None])
    level = 8 + 24 * np.exp(-((far / 2.5) ** 2)) * labels[:, None, None]
    batch = {
        "counts": random.poisson(level)[..., None].astype(np.int32),
        "scale": np.full(size, 8.0, np.float32),
        "label": labels,
        "mask": np.ones(size, bool),
    }
    return batch, places


@pytest.mark.exhaustive
@pytest.mark.usefixtures("optimised")
def test_trained_network_looks_at_the_feature_that_was_planted():
    options = {"regions": (1, 1), "hidden": 16, "dropout": 0.0}
    model = _model("dscint", widths=(8, 8, 8), strides=(1, 1, 1), **options)
    spec, params, batch_stats = _taken_apart(model)
    spec = dataclasses.replace(spec, optimizer=optax.adam(1e-2))
    state = TrainState(jnp.zeros((), jnp.int32), params, batch_stats, spec.optimizer.init(params))
    random = np.random.default_rng(0)
    step = jax.jit(functools.partial(train_step, spec=spec))
    for _ in range(40):
        state, metrics = step(state, _blobs(random, 32)[0])
    assert metrics["accuracy"] > 0.9
    batch, places = _blobs(random, 64)
    step = jax.jit(functools.partial(maps_step, spec=spec))
    found = step(state.params, state.batch_stats, batch | {"label": np.ones(64, np.int32)})
    for maps in map(np.asarray, (found.grad_cam, found.gradient_input)):
        side = 48 // maps.shape[1]
        tops = [np.unravel_index(heat.argmax(), heat.shape) for heat in maps]
        far = np.linalg.norm((np.array(tops) + 0.5) * side - (places + 0.5), axis=1)
        # A position of the map is `side` pixels wide, the blob five pixels.
        near = far <= max(2 * side, 4)
        assert near[batch["label"] == 1].mean() > 0.9
        assert near[batch["label"] == 0].mean() < 0.3


class Whole(nnx.Module):
    """A network that cannot be taken apart."""

    def __init__(self, *, rngs):
        self.head = nnx.Linear(1, CLASSES, rngs=rngs)

    def __call__(self, images, *, rngs=None):
        return self.head(images.mean((1, 2)))


def test_network_that_cannot_be_taken_apart_has_gradients_of_pixels_alone():
    spec, params, batch_stats = _taken_apart(Whole(rngs=nnx.Rngs(0)))
    batch = jax.tree.map(jnp.asarray, _batch(2))
    found = maps_step(params, batch_stats, batch, spec=spec)
    assert found.grad_cam is None
    assert found.gradient_input.shape == (2, 32, 16)
