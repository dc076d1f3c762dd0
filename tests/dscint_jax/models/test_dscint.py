import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dscint_jax import models
from dscint_jax.models import pooling
from dscint_jax.models.attention import HybridAttention
from tfds_builder.commandline.errors import UserError

TINY = {
    "widths": (4, 6, 8),
    "strides": (2, 1, 1),
    "pool_after": (2,),
    "attention_after": 2,
    "regions": (4, 2),
    "hidden": 8,
}


def _build(seed=0, **options):
    return models.build(
        "dscint", num_classes=4, rngs=nnx.Rngs(params=seed), options={**TINY, **options}
    )


def _images(seed=0, shape=(2, 32, 16, 1)):
    return jnp.array(np.random.default_rng(seed).random(shape, np.float32))


def test_dscint_has_the_published_counts_of_layers():
    model = models.build("dscint", num_classes=4, rngs=nnx.Rngs(params=0))
    modules = [module for _, module in nnx.iter_modules(model)]
    gates = [m for m in modules if isinstance(m, HybridAttention)]
    assert len(model.convolutions) == 8
    assert len([m for m in modules if isinstance(m, nnx.BatchNorm)]) == 2
    assert len(gates) == 1
    assert gates[0].channel_gate is not None
    assert gates[0].spatial_gate is not None
    assert isinstance(model.hidden, nnx.Linear)
    assert model.head.out_features == 4


def test_attention_maps_are_the_gates_that_multiply_the_features():
    features = jnp.array(np.random.default_rng(1).normal(size=(2, 8, 4, 16)), jnp.float32)
    gated, maps = HybridAttention(16, rngs=nnx.Rngs(params=1))(features)
    assert maps.channel.shape == (2, 16)
    assert maps.spatial.shape == (2, 8, 4, 1)
    assert ((maps.spatial > 0) & (maps.spatial < 1)).all()
    product = features * maps.channel[:, None, None, :] * maps.spatial
    np.testing.assert_allclose(gated, product, rtol=1e-6)


@pytest.mark.parametrize(
    ("attention", "has_channel", "has_spatial"),
    [("none", 0, 0), ("channel", 1, 0), ("spatial", 0, 1), ("hybrid", 1, 1)],
)
def test_attention_kind_decides_which_gates_exist(attention, has_channel, has_spatial):
    model = _build(attention=attention)
    model.eval()
    maps = model.attention_maps(_images())
    assert (maps.channel is not None, maps.spatial is not None) == (has_channel, has_spatial)


def test_dropout_and_batch_norm_differ_between_training_and_evaluation():
    model, images = _build(dropout=0.5), _images()
    before = np.asarray(model.convolutions[0].norm.mean[...])
    model.train()
    first, second = (model(images, rngs=nnx.Rngs(dropout=jax.random.key(k))) for k in (0, 1))
    assert not np.allclose(first, second)
    assert not np.allclose(before, model.convolutions[0].norm.mean[...])
    model.eval()
    np.testing.assert_array_equal(model(images), model(images))


def test_same_seed_same_weights_other_seed_other_weights():
    kernels = [_build(seed).head.kernel[...] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.allclose(kernels[0], kernels[2])


def test_network_takes_any_image_size():
    model = _build()
    model.eval()
    assert model(_images(shape=(1, 64, 40, 1))).shape == (1, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": (1, 2)}, "strides has 2 entries"),
        ({"norm_layers": (3,)}, "norm_layers 3 is no convolution"),
        ({"pool_after": (0,)}, "pool_after 0 is no convolution"),
        ({"attention": "self"}, "attention 'self'"),
        ({"attention_after": 4}, "attention_after 4"),
        ({"pooling": "sum"}, "pooling 'sum'"),
        ({"widhts": (4,)}, "did you mean 'widths'"),
        ({"regions": (4,)}, "regions"),
        ({"regions": (0, 2)}, "regions"),
        ({"hidden": 0}, "hidden"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(UserError, match=message):
        _build(**options)


def _plain_forward(model, x):
    """The network without a line about attention."""
    for number, convolution in enumerate(model.convolutions, start=1):
        x = convolution(x)
        if number in model.pool_after:
            x = pooling.downsample_max(x)
    x = pooling.pool_regions(x, model.regions, "average_max").reshape(len(x), -1)
    return model.head(nnx.relu(model.hidden(x)))


def test_attention_off_is_the_plain_network_bit_for_bit():
    off, on = (_build(attention=kind) for kind in ("none", "hybrid"))
    off.eval()
    np.testing.assert_array_equal(off(_images()), _plain_forward(off, _images()))
    # All else starts from the same weights, whatever the attention.
    others = dict(nnx.to_flat_state(nnx.state(on)))
    for path, leaf in nnx.to_flat_state(nnx.state(off)):
        np.testing.assert_array_equal(leaf[...], others[path][...])
    assert {path[0] for path in others} - {p[0] for p, _ in nnx.to_flat_state(nnx.state(off))} == {
        "attention"
    }


@pytest.mark.parametrize(("reading", "convolutions"), [("eight", 8), ("six", 6)])
def test_both_readings_of_eight_weight_layers(reading, convolutions):
    model = nnx.eval_shape(
        lambda: models.build(
            "dscint",
            num_classes=4,
            rngs=nnx.Rngs(params=0),
            options={"reading": reading, "width": 0.5},
        )
    )
    assert len(model.convolutions) == convolutions
    assert model.convolutions[0].conv.kernel.shape == (3, 3, 1, 16)
    assert model.num_features == 64


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "instance"])
@pytest.mark.parametrize("norm_layers", [(), (0, -1), (0, 1, 2)])
def test_norms_are_of_the_kind_and_number_asked_for(norm, norm_layers):
    model = _build(norm=norm, norm_layers=norm_layers)
    kind = nnx.BatchNorm if norm == "batch" else nnx.GroupNorm
    found = [module for _, module in nnx.iter_modules(model) if isinstance(module, kind)]
    assert len(found) == len(norm_layers)
    model.eval()
    assert np.isfinite(model(_images())).all()


@pytest.mark.parametrize("options", [{"width": 0.5}, {"reading": "six"}])
def test_widths_and_what_they_replace_exclude_each_other(options):
    with pytest.raises(UserError, match=r"config\.model_options\.widths takes the place of"):
        _build(**options)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("norm_layers", (0.5,)),
        ("norm_layers", (True,)),
        ("norm_layers", 5),
        ("norm_layers", (3,)),
        ("pool_after", (2.5,)),
        ("pool_after", 2),
        ("attention_after", 2.5),
        ("attention_after", 0),
        ("standardised", "no"),
        ("regions", (True, 2)),
        ("regions", 4),
        ("regions", (4, 2, 1)),
        ("widths", 5),
        ("widths", ()),
        ("strides", (1, "2", 1)),
        ("kernel", 2.0),
        ("attention_reduction", 0),
        ("hidden", True),
        ("dropout", True),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_option_of_another_type_or_size_is_named(option, value):
    with pytest.raises(UserError, match=rf"config\.model_options\.{option} "):
        _build(**{option: value})


@pytest.mark.parametrize("width", [True, "a", 0, -1.0, float("inf")])
@pytest.mark.usefixtures("unchecked")
def test_width_that_is_no_factor_is_named(width):
    with pytest.raises(UserError, match=r"config\.model_options\.width .* more than 0"):
        models.build("dscint", num_classes=4, rngs=nnx.Rngs(params=0), options={"width": width})
