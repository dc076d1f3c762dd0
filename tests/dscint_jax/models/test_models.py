"""What every network must do; what is a network's own stands in a file of its name."""

import functools
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dscint_jax import models
from dscint_jax.config import Augmentation, Optimizer
from dscint_jax.models import cost
from dscint_jax.models.attention import AttentionMaps
from dscint_jax.training.losses import make_loss
from dscint_jax.training.optimizers import make_schedule
from dscint_jax.training.state import TrainState
from dscint_jax.training.step import StepSpec, eval_step, split_network, train_step
from tfds_builder.commandline.errors import UserError

FAMILIES = ("alexnet", "vgg16_bn", "resnet18", "densenet121", "inception_v4", "dscint", "dual_view")
"""One member of each family; the others are tested with --run-exhaustive."""

NETWORKS = [
    pytest.param(name, marks=[] if name in FAMILIES else pytest.mark.exhaustive)
    for name in models.NETWORKS
]


def _slow(*names):
    """All networks: these in CI, the others, which take minutes, in the night."""
    return [
        pytest.param(n, marks=pytest.mark.slow if n in names else pytest.mark.exhaustive)
        for n in models.NETWORKS
    ]


SIZE = (128, 32)
TRAINING_SIZES = {"inception_v4": (192, 96)}
"""Where not SIZE, which gives Inception-v4 last maps of 2x1: its running statistics would be those
of 16 values, too few to evaluate with what was learned."""
EXAMPLES = 8
CLASSES = 4


def _options(name, **options):
    # Few channels, so that what the test does not look at costs little.
    if name == "dual_view":
        return {"encoder": "dscint", "encoder_options": {"width": 0.25}, **options}
    return options


def _model(name, **options):
    build = lambda: models.build(  # noqa: E731
        name,
        num_classes=CLASSES,
        rngs=nnx.Rngs(params=jax.random.key(3)),
        options=_options(name, **options),
    )
    return build


def _shape(name, size=SIZE, channels=1):
    views = (2,) if name == "dual_view" else ()
    return (EXAMPLES, *views, *size, channels)


def _images(name):
    random = np.random.default_rng(0)
    return jnp.array(np.sqrt(_counts(random, _shape(name)) / 6), jnp.float32)


def _counts(random, shape):
    """Counts of activity that differs between regions and between images, as in scans."""
    *images, height, width, channels = shape
    regions = random.gamma(2, 3, (*images, height // 16, width // 16, channels))
    return random.poisson(regions.repeat(16, -3).repeat(16, -2))


def _batch(name):
    random = np.random.default_rng(5)
    shape = _shape(name, TRAINING_SIZES.get(name, SIZE))
    return {
        "counts": jnp.array(_counts(random, shape), jnp.int32),
        "scale": jnp.full(shape[:-3], 6.0),
        "label": jnp.arange(EXAMPLES) % CLASSES,
        "mask": jnp.ones(EXAMPLES, bool),
    }


def _trainer(name, learning_rate, **options):
    """The compiled steps of a network and its state before the first."""
    model = _model(name, **options)()
    training, inference, params, batch_stats = split_network(model)
    # The rate ends at zero, so that the running statistics settle on what the weights have become;
    # networks without BatchNorm have none and learn more slowly.
    steps = 60 if _batch_norms(model) else 200
    schedule = Optimizer(learning_rate=learning_rate, warmup_steps=5)
    spec = StepSpec(
        training=training,
        inference=inference,
        optimizer=optax.adam(make_schedule(schedule, steps=steps)),
        augmentation=Augmentation(),
        loss=make_loss(class_weights=(1.0,) * CLASSES),
        clip=3.0,
        seed=0,
    )
    state = TrainState(jnp.zeros((), jnp.int32), params, batch_stats, spec.optimizer.init(params))
    train, evaluate = (
        jax.jit(functools.partial(step, spec=spec)) for step in (train_step, eval_step)
    )
    return state, train, evaluate


def _batch_norms(model):
    return [module for _, module in nnx.iter_modules(model) if isinstance(module, nnx.BatchNorm)]


@pytest.mark.usefixtures("optimised")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.exhaustive)]
)
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", models.NETWORKS)
def test_network_learns_eight_images_by_heart_within_200_steps(name, dtype):
    batch = _batch(name)
    state, train, evaluate = _trainer(name, 1e-4 if "vgg" in name else 3e-4, dtype=dtype)
    for step in range(1, 201):
        state, metrics = train(state, batch)
        if step % 10 == 0:
            result = evaluate(state.params, state.batch_stats, batch)
            if np.trace(result.confusion) == EXAMPLES:
                break
    assert np.trace(result.confusion) == EXAMPLES, f"{metrics} after {step} steps"
    kinds = {leaf.dtype for leaf in jax.tree.leaves((state.params, state.batch_stats))}
    assert kinds == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", _slow("dscint"))
def test_every_parameter_has_a_finite_gradient_that_is_not_zero(name):
    model = _model(name)()
    model.eval()
    structure, params, rest = nnx.split(model, nnx.Param, ...)
    weights = jnp.array(np.random.default_rng(1).normal(size=(EXAMPLES, CLASSES)), jnp.float32)

    @jax.jit
    def gradient(params, images):
        # With the running statistics: in training BatchNorm takes out the biases before it.
        return jax.grad(
            lambda p: (nnx.merge(structure, p, rest, copy=True)(images) * weights).sum()
        )(params)

    for path, leaf in nnx.to_flat_state(gradient(params, _images(name))):
        assert jnp.isfinite(leaf[...]).all(), path
        assert (leaf[...] != 0).any(), path


@pytest.mark.parametrize("name", _slow("dscint", "dual_view"))
def test_training_and_evaluation_differ(name):
    model, images = _model(name)(), _images(name)
    modules = [module for _, module in nnx.iter_modules(model)]
    dropout = any(isinstance(m, nnx.Dropout) and m.rate > 0 for m in modules)
    norms = _batch_norms(model)
    before = [np.asarray(norm.mean[...]) for norm in norms]

    def logits(model, key):
        return nnx.jit(lambda m, x, k: m(x, rngs=nnx.Rngs(dropout=k)))(
            model, images, jax.random.key(key)
        )

    model.eval()
    evaluated = logits(model, 0)
    np.testing.assert_array_equal(evaluated, logits(model, 1))
    for norm, mean in zip(norms, before, strict=True):
        np.testing.assert_array_equal(norm.mean[...], mean)
    model.train()
    trained = [logits(model, key) for key in (0, 1)]
    assert not np.allclose(trained[0], evaluated)
    assert np.array_equal(*trained) == (not dropout)
    for norm, mean in zip(norms, before, strict=True):
        assert (np.asarray(norm.mean[...]) != mean).any()


@functools.cache
def _abstract(name, channels=1, dtype="float32"):
    options = _options(name, dtype=dtype)
    model = cost.abstract_network(name, num_classes=CLASSES, channels=channels, options=options)
    model.eval()
    return model


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("size", "channels"), [((128, 32), 1), ((256, 64), 3), ((1024, 256), 1), ((135, 41), 1)]
)
def test_any_size_from_128x32_up_and_one_or_three_channels(name, size, channels):
    images = jax.ShapeDtypeStruct(_shape(name, size, channels), jnp.float32)
    structure, state = nnx.split(_abstract(name, channels))
    result = jax.eval_shape(lambda s, x: nnx.merge(structure, s)(x), state, images)
    assert result.shape == (EXAMPLES, CLASSES)
    assert result.dtype == jnp.float32


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_is_for_the_computation_only(name):
    model = _abstract(name, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    structure, state = nnx.split(model)
    images = jax.ShapeDtypeStruct(_shape(name), jnp.float32)
    program = jax.make_jaxpr(lambda s, x: nnx.merge(structure, s)(x))(state, images)
    convolutions = [line for line in str(program).splitlines() if "conv_general_dilated" in line]
    assert convolutions
    assert all(":bf16[" in line for line in convolutions)


def test_unknown_network_is_named_with_those_there_are():
    with pytest.raises(UserError, match=r"'dscnt'.*dscint"):
        models.build("dscnt", num_classes=4, rngs=nnx.Rngs(params=0))


def test_unknown_option_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"vgg16 has no option 'droput'; did you mean 'dropout'"):
        models.build("vgg16", num_classes=4, rngs=nnx.Rngs(params=0), options={"droput": 0.1})


def test_what_makes_a_variant_is_no_option():
    with pytest.raises(UserError, match="resnet18 has no option 'depths'"):
        models.build("resnet18", num_classes=4, rngs=nnx.Rngs(params=0), options={"depths": (1,)})


def test_unknown_dtype_is_named():
    with pytest.raises(UserError, match=r"dtype 'float16' is not one of float32, bfloat16"):
        models.build(
            "resnet18", num_classes=4, rngs=nnx.Rngs(params=0), options={"dtype": "float16"}
        )


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of a user's own with one network and several mistakes."""
    source = """
    from flax import nnx

    class Linear(nnx.Module):
        def __init__(self, *, num_classes, scale=1.0, rngs):
            self.head = nnx.Linear(32, num_classes, rngs=rngs)
            self.scale = scale

        def __call__(self, images, *, rngs=None):
            return self.head(images.mean((1, 3))) * self.scale

    def build(*, num_classes, scale=1.0, rngs):
        return Linear(num_classes=num_classes, scale=scale, rngs=rngs)

    def number(*, num_classes, rngs):
        return num_classes

    def plain(*, num_classes, rngs):
        return nnx.Linear(32, num_classes, rngs=rngs)

    def broken(*, num_classes, rngs):
        return undefined

    class Silent(nnx.Module):
        def __init__(self, *, num_classes, rngs):
            pass

    class Sized(Linear):
        def __init__(self, *, num_classes, sizes=(), table=None, rngs):
            super().__init__(num_classes=num_classes, rngs=rngs)
            self.kinds = type(sizes), type(table), type(table["inner"])

        def __call__(self, images, **kwargs):
            return super().__call__(images)

    class Loose(Linear):
        def __init__(self, *, num_classes, rngs, **options):
            super().__init__(num_classes=num_classes, rngs=rngs)
            self.options = options

    LIMIT = 3
    """
    (tmp_path / "own_networks.py").write_text(textwrap.dedent(source))
    (tmp_path / "broken_networks.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_networks"
    sys.modules.pop("own_networks", None)


@pytest.mark.parametrize("function", ["build", "Linear"])
def test_network_of_ones_own_is_built_by_its_path(own_module, function):
    model = models.build(
        f"{own_module}:{function}",
        num_classes=4,
        rngs=nnx.Rngs(params=0),
        options={"scale": 2.0},
    )
    assert model(_images("own")).shape == (EXAMPLES, 4)
    assert model.scale == 2.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:build", r"no_such_module cannot be imported \(ModuleNotFoundError"),
        ("broken_networks:build", "broken_networks cannot be imported"),
        ("own_networks:buidl", "own_networks has no function 'buidl'"),
        ("own_networks:LIMIT", "own_networks has no function 'LIMIT'"),
        ("own_networks:number", r"returned a int; it must be a flax\.nnx\.Module"),
        ("own_networks:plain", r"must be callable as model\(images, rngs=\.\.\.\)"),
        ("own_networks:broken", "own_networks:broken failed"),
        (":build", "cannot be imported"),
        ("own_networks:Silent", r"must be callable as model\(images, rngs=\.\.\.\)"),
        ("builtins:max", r"builtins:max failed"),
    ],
)
def test_mistakes_in_a_network_of_ones_own_are_named(own_module, name, message):
    with pytest.raises(UserError, match=message):
        models.build(name, num_classes=4, rngs=nnx.Rngs(params=0))


def test_options_that_json_made_lists_of_are_tuples_again(own_module):
    options = {"sizes": [1, 2], "table": {"inner": [3]}}
    model = models.build(
        f"{own_module}:Sized", num_classes=4, rngs=nnx.Rngs(params=0), options=options
    )
    assert model.kinds == (tuple, dict, tuple)


@pytest.mark.parametrize("option", ["name", "network", "scale"])
def test_option_of_a_network_of_ones_own_may_have_any_name(own_module, option):
    model = models.build(
        f"{own_module}:Loose", num_classes=4, rngs=nnx.Rngs(params=0), options={option: "z"}
    )
    assert model.options == {option: "z"}


@pytest.mark.parametrize("option", ["num_classes", "rngs"])
def test_argument_that_every_network_is_given_is_no_option(own_module, option):
    with pytest.raises(UserError, match=rf"config\.model_options\.{option} is no option"):
        models.build(
            f"{own_module}:Loose", num_classes=4, rngs=nnx.Rngs(params=0), options={option: 3}
        )


@pytest.mark.parametrize("channels", [0, -1, 1.5, "1", True])
def test_number_of_channels_that_is_none_is_named(channels):
    with pytest.raises(UserError, match="in_channels"):
        models.build(
            "resnet18", num_classes=4, rngs=nnx.Rngs(params=0), options={"in_channels": channels}
        )


def test_network_without_attention_has_no_maps():
    assert not hasattr(nnx.eval_shape(_model("resnet18")), "attention_maps")
    assert AttentionMaps() == AttentionMaps(channel=None, spatial=None)


@pytest.mark.parametrize(
    ("name", "options", "factor"),
    [
        ("alexnet", {"width": 1 / 4}, 1 / 16),
        ("vgg16", {"width": 1 / 4}, 1 / 16),
        ("resnet18", {"width": 1 / 4}, 1 / 16),
        ("densenet121", {"growth": 8}, 1 / 16),
        ("inception_v4", {"width": 1 / 4}, 1 / 16),
    ],
)
def test_narrow_members_have_the_layers_and_few_of_the_parameters(name, options, factor):
    whole = cost.abstract_network(name, num_classes=CLASSES)
    narrow = cost.abstract_network(name, num_classes=CLASSES, options=options)
    assert cost.kernel_counts(narrow) == cost.kernel_counts(whole)
    assert cost.parameter_count(narrow) == pytest.approx(
        factor * cost.parameter_count(whole), rel=0.1
    )


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("vgg16", {"width": 0}, "width"),
        ("densenet121", {"growth": 0.5}, "growth"),
        ("inception_v4", {"width": 0.3}, "whole number"),
        ("inception_v4", {"blocks": (4, 7)}, "three counts"),
    ],
)
def test_width_that_cannot_be_is_named(name, options, words):
    with pytest.raises(UserError, match=words):
        cost.network_cost(name, options=options)
