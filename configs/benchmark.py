"""The published comparison: Dscint and five networks, two protocols, ablations, several seeds.

    python -m dscint_jax.benchmark --config configs/benchmark.py:cpu --workdir runs/benchmark/cpu

Sizes: `smoke` shows in minutes that everything runs and says nothing of the networks; `cpu` is for
two cores and several hours; `headline` trains Dscint alone, longer, the published protocol first;
`paper` has full images, for accelerators. One budget holds for all: the same images, as many steps
of as many images. Learning rates are chosen on the validation split.
"""

from dscint_jax.benchmark.plan import Benchmark
from dscint_jax.config import AUGMENTED, PATIENT, Config, Data, Optimizer

NETWORKS = ("dscint", "alexnet", "vgg16", "resnet18", "densenet121", "inception_v4")
CONDITIONS = {PATIENT: {"protocol": PATIENT}, AUGMENTED: {"protocol": AUGMENTED}}

NO_AUGMENTATION = {
    "augmentation.mirror": 0.0,
    "augmentation.translation": (0.0, 0.0),
    "augmentation.rotated": 0.0,
    "augmentation.scaled": 0.0,
    "augmentation.intensified": 0.0,
    "augmentation.thinned": 0.0,
}

NARROW = {
    "widths": (24, 32, 48, 64, 64, 64, 64, 64),
    "strides": (2, 1, 1, 1, 1, 1, 1, 1),
    "pool_after": (2, 3),
    "attention_after": 3,
    "hidden": 64,
    "dropout": 0.1,
}
"""Dscint's layers, fewer channels than in dscint.py."""


SHALLOW_DENSENET = {
    "model": "dscint_jax.models.densenet:DenseNet",
    "model_options": {"depths": (1, 1, 1, 1), "growth": 8},
}
"""A DenseNet that compiles in seconds."""


def ablations(six: dict) -> dict:
    """What is left out of Dscint, or done otherwise; `six`: options of the other reading."""
    return {
        "no_attention": {"model_options.attention": "none"},
        "channel_attention": {"model_options.attention": "channel"},
        "spatial_attention": {"model_options.attention": "spatial"},
        "no_normalisation": {"model_options.norm_layers": ()},
        "plain_kernels": {"model_options.standardised": False},
        "global_pooling": {"model_options.regions": (1, 1)},
        "six_convolutions": {f"model_options.{name}": value for name, value in six.items()},
        "no_augmentation": NO_AUGMENTATION,
    }


def get_config(size: str = "cpu") -> Benchmark:
    """The plan of one size."""
    return {"smoke": smoke, "cpu": cpu, "headline": headline, "paper": paper}[size]()


def smoke() -> Benchmark:
    """Small members of each family, four steps, one protocol: that all of it runs."""
    return Benchmark(
        base=Config(
            steps=4,
            batch_size=8,
            data=Data(dir="runs/quickstart/data", pool=16),
            optimizer=Optimizer(warmup_steps=1),
            log_every=1,
            evaluate_every=2,
            keep_last=1,
            trackers=(),
        ),
        networks={
            "dscint": {"model_options": {"width": 0.25, "pool_after": (2,), "regions": (2, 1)}},
            "alexnet": {"model_options": {"width": 1 / 16}},
            "vgg16": {"model_options": {"width": 1 / 16}},
            "resnet18": {"model_options": {"width": 1 / 4}},
            "densenet121": SHALLOW_DENSENET,
            "inception_v4": {"model_options": {"width": 1 / 4, "blocks": (1, 1, 1)}},
        },
        ablations={},
        conditions={PATIENT: {"protocol": PATIENT}},
        learning_rates=(1e-3,),
        seeds=(0,),
    )


def cpu() -> Benchmark:
    """128x32 pixels; every network has a part of its channels, or it took days."""
    return Benchmark(
        base=Config(
            steps=2000,
            batch_size=16,
            data=Data(dir="runs/quickstart/data", pool=8, copies=4),
            optimizer=Optimizer(warmup_steps=100),
            log_every=20,
            evaluate_every=200,
            keep_last=1,
            trackers=(),
        ),
        networks={
            "dscint": {"model_options": NARROW},
            "alexnet": {"model_options": {"width": 1 / 4}},
            "vgg16": {"model_options": {"width": 1 / 8}},
            "resnet18": {"model_options": {"width": 1 / 4}},
            "densenet121": {"model_options": {"growth": 8}},
            "inception_v4": {"model_options": {"width": 1 / 4}},
        },
        ablations=ablations({"widths": (24, 32, 48, 64, 64, 64), "strides": (2, 1, 1, 1, 1, 1)}),
        conditions=CONDITIONS,
        learning_rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
        seeds=(0, 1, 2),
    )


def headline() -> Benchmark:
    """Dscint a little wider than in quickstart.py, longer, without dropout."""
    wider = {
        **NARROW,
        "widths": (24, 32, 48, 64, 96, 96, 96, 96),
        "pool_after": (2, 3, 4),
        "hidden": 256,
        "dropout": 0.0,
    }
    return Benchmark(
        base=Config(
            steps=3000,
            batch_size=48,
            data=Data(dir="runs/quickstart/data", pool=4, copies=4, cache_gib=4.0),
            optimizer=Optimizer(name="muon", warmup_steps=100),
            log_every=20,
            evaluate_every=250,
            keep_last=1,
            trackers=(),
        ),
        networks={"dscint": {"model_options": wider}},
        ablations={},
        conditions={name: CONDITIONS[name] for name in (AUGMENTED, PATIENT)},
        learning_rates=(4e-3,),
        seeds=(0, 1, 2),
    )


def paper() -> Benchmark:
    """Full images, the published networks, for accelerators; never run as a whole yet."""
    return Benchmark(
        base=Config(
            steps=20_000,
            batch_size=64,
            data=Data(dir="data"),
            evaluate_every=1000,
            trackers=(),
        ),
        networks={name: {"model_options.dtype": "bfloat16"} for name in NETWORKS},
        ablations=ablations({"reading": "six"}),
        conditions=CONDITIONS,
        learning_rates=(1e-4, 3e-4, 1e-3, 3e-3),
        seeds=(0, 1, 2, 3, 4),
    )
