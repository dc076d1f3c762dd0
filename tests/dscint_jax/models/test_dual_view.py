import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dscint_jax import models
from dscint_jax.models import cost
from tfds_builder.commandline.errors import UserError

ENCODER = {"widths": (4, 6, 8), "strides": (2, 1, 1), "pool_after": (2,), "attention_after": 2}
OPTIONS = {"encoder": "dscint", "encoder_options": ENCODER, "attention_hidden": 5}

# Compiled once for all tests.
logits_of = nnx.jit(lambda model, studies: model(studies))
shares_of = nnx.jit(lambda model, studies: model.attention_maps(studies).spatial)
maps_of = nnx.jit(lambda model, views: model.encoder.feature_maps(views))


def _build(seed=0, **options):
    model = models.build(
        "dual_view", num_classes=4, rngs=nnx.Rngs(params=seed), options={**OPTIONS, **options}
    )
    # Zero at first; as if it had learned to tell the views apart.
    embedding = np.random.default_rng(seed).normal(size=model.view_embedding.shape)
    model.view_embedding[...] = jnp.array(embedding, jnp.float32)
    model.eval()
    return model


def _studies(seed=0, batch=4, *, missing=()):
    """Random pairs of views; `missing` names (study, view)."""
    studies = np.random.default_rng(seed).random((batch, 2, 32, 16, 1), np.float32)
    for study, view in missing:
        studies[study, view] = 0
    return jnp.array(studies)


def _expected(model, study):
    """Logits and shares of one study from those of its views that are there, step by step."""
    maps, there = [], [view for view in (0, 1) if study[view].any()]
    for view in there:
        features = maps_of(model, study[view][None])[0]
        maps.append(np.asarray(features) + np.asarray(model.view_embedding[...])[view])
    weights = {
        name: (np.asarray(layer.kernel[...]), np.asarray(layer.bias[...]))
        for name, layer in (("content", model.attention.content), ("gate", model.attention.gate))
    }
    maps = np.stack(maps)
    content = np.tanh(maps @ weights["content"][0] + weights["content"][1])
    gate = 1 / (1 + np.exp(-(maps @ weights["gate"][0] + weights["gate"][1])))
    scores = np.exp((content * gate) @ np.asarray(model.attention.score.kernel[...]))
    shares = scores / scores.sum()
    features = (maps * shares).sum((0, 1, 2))
    return features @ np.asarray(model.head.kernel[...]) + np.asarray(model.head.bias[...]), shares


def test_logits_are_those_of_maps_weighed_over_the_views_that_are_there():
    model, studies = _build(), _studies(1, missing=[(1, 0), (2, 1)])
    logits, shares = logits_of(model, studies), shares_of(model, studies)
    for n, there in enumerate([[0, 1], [1], [0], [0, 1]]):
        expected, expected_shares = _expected(model, np.asarray(studies[n]))
        np.testing.assert_allclose(logits[n], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(shares[n][np.array(there)], expected_shares, rtol=1e-4)


def test_shares_sum_to_one_over_both_views_and_a_missing_view_has_none():
    shares = shares_of(_build(), _studies(2, missing=[(1, 0), (2, 1)]))
    assert shares.shape == (4, 2, 8, 4, 1)
    np.testing.assert_allclose(shares.sum((1, 2, 3, 4)), 1.0, rtol=1e-5)
    assert not shares[1, 0].any()
    assert not shares[2, 1].any()
    assert (shares[np.array([0, 3])] > 0).all()


def test_missing_view_does_not_move_the_logits_of_any_study():
    model, studies = _build(), _studies(3, missing=[(0, 1)])
    before = logits_of(model, studies)
    model.view_embedding[...] = model.view_embedding[...].at[1].add(3.0)
    after = logits_of(model, studies)
    np.testing.assert_array_equal(after[0], before[0])
    assert not np.allclose(after[1:], before[1:], atol=1e-3)


def test_studies_beside_it_do_not_matter_to_a_study():
    model, studies = _build(), _studies(4, missing=[(2, 0)])
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(
        logits_of(model, studies)[order], logits_of(model, studies[order]), atol=1e-6
    )
    other = studies.at[1:].set(_studies(5)[1:])
    np.testing.assert_allclose(logits_of(model, other)[0], logits_of(model, studies)[0], atol=1e-6)


def test_one_encoder_serves_both_views_and_an_embedding_tells_them_apart():
    model, studies = _build(), _studies(6)
    exchanged = studies[:, ::-1]
    assert not np.allclose(logits_of(model, exchanged), logits_of(model, studies), atol=1e-3)
    model.view_embedding[...] = jnp.zeros_like(model.view_embedding[...])
    np.testing.assert_allclose(logits_of(model, exchanged), logits_of(model, studies), atol=1e-5)
    shares = [shares_of(model, images) for images in (exchanged[:, ::-1], exchanged)]
    np.testing.assert_allclose(shares[0], shares[1][:, ::-1], atol=1e-6)


def test_every_parameter_has_a_finite_gradient_whatever_views_are_missing():
    model = _build(seed=7)
    model.train()
    studies = _studies(7, missing=[(0, 0), (1, 1), (2, 0), (2, 1)])
    factors = jnp.array(np.random.default_rng(7).normal(size=(4, 4)), jnp.float32)

    def loss(model):
        logits = model(studies, rngs=nnx.Rngs(dropout=jax.random.key(7)))
        return (logits * factors).sum()

    gradients = nnx.to_flat_state(nnx.jit(nnx.grad(loss))(model))
    assert len(gradients) > 15
    for path, gradient in gradients:
        assert np.isfinite(gradient[...]).all(), path
        assert np.abs(gradient[...]).max() > 0, path


def test_study_without_any_view_has_finite_logits():
    logits = logits_of(_build(), _studies(8, missing=[(0, 0), (0, 1)]))
    assert np.isfinite(logits).all()


def test_bfloat16_keeps_shares_and_logits_in_float32():
    model, studies = _build(dtype="bfloat16"), _studies(9)
    shares = shares_of(model, studies)
    assert shares.dtype == logits_of(model, studies).dtype == jnp.float32
    np.testing.assert_allclose(shares.sum((1, 2, 3, 4)), 1.0, rtol=1e-5)
    np.testing.assert_allclose(logits_of(model, studies), logits_of(_build(), studies), atol=0.1)
    assert maps_of(model, studies[:, 0]).dtype == jnp.bfloat16


def test_dropout_is_drawn_in_training_only():
    model, studies = _build(dropout=0.5), _studies(10)
    np.testing.assert_array_equal(logits_of(model, studies), logits_of(model, studies))
    model.train()
    first, second = (model(studies, rngs=nnx.Rngs(dropout=jax.random.key(k))) for k in (0, 1))
    assert not np.allclose(first, second)


@pytest.mark.parametrize("encoder", [name for name in models.NETWORKS if name != "dual_view"])
def test_any_network_is_an_encoder(encoder):
    images = jax.ShapeDtypeStruct((3, 2, 256, 64, 1), jnp.float32)
    options = {"encoder": encoder}
    model = cost.abstract_network("dual_view", num_classes=4, options=options)
    model.eval()
    structure, state = nnx.split(model)
    logits = jax.eval_shape(lambda s, x: nnx.merge(structure, s)(x), state, images)
    assert logits.shape == (3, 4)


def test_stem_and_head_name_the_first_convolution_and_the_last_layer():
    model = nnx.eval_shape(
        lambda: models.build("dual_view", num_classes=3, rngs=nnx.Rngs(params=0))
    )
    find = lambda path: functools.reduce(getattr, path.split("."), model)  # noqa: E731
    assert find(model.STEM) is model.encoder.conv1
    assert find(model.HEAD).out_features == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "dual_view"}, r"encoder 'dual_view' is not one of .*resnet18"),
        ({"encoder": "resnt18"}, r"encoder 'resnt18' is not one of .*resnet18"),
        ({"encoder_options": {"widht": 2}}, r"dscint has no option 'widht'; did you mean 'width'"),
        ({"encoder_options": {"dtype": "float32"}}, r"set config\.model_options\.dtype"),
        (
            {"encoder_options": {"attention": "self"}},
            r"config\.model_options\.encoder_options\.attention 'self'",
        ),
        ({"attention_hidden": 0}, "attention_hidden"),
        ({"dropout": 1.0}, "dropout"),
        ({"encodr": "dscint"}, "did you mean 'encoder'"),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(UserError, match=message):
        _build(**options)


@pytest.mark.parametrize("shape", [(4, 32, 16, 1), (4, 1, 32, 16, 1), (4, 3, 32, 16, 1)])
@pytest.mark.usefixtures("unchecked")
def test_images_that_are_no_pairs_are_refused_with_what_to_set(shape):
    with pytest.raises(UserError, match=r"reads studies; set --config\.data\.records=studies"):
        _build()(jnp.ones(shape))
