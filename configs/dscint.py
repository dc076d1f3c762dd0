"""Dscint at full size: 1024x256 scintigrams, four classes; or another network in its place.

    python -m dscint_jax.main --config configs/dscint.py --workdir runs/dscint \
        --config.data.dir=DATA_DIR
    python -m dscint_jax.main --config configs/dscint.py:resnet50 --workdir runs/resnet50 \
        --config.data.dir=DATA_DIR

`python -m dscint_jax.models` lists the networks. Dscint's counts of layers are the published ones,
all else is our choice: see the docstring of dscint_jax/models/dscint.py. Meant for a GPU; no time
and no score are given because none was measured yet.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# Without normalisation layers these diverge at the learning rate of the others.
PLAIN_NETWORKS = ("alexnet", "vgg16", "vgg19")


def get_config(network: str = "dscint") -> ConfigDict:
    """The experiment, with any of the networks."""
    config = ConfigDict()

    # Everything random follows from this number.
    config.seed = 0
    # Optimiser steps; the learning rate's schedule ends with them.
    config.steps = 20_000
    # Images a step, over all devices together.
    config.batch_size = 32
    # Weights of the classes in the loss: 'balanced' (by inverse frequency) or 'none'.
    config.class_weights = "none"
    # Share of the target that is spread over all classes.
    config.label_smoothing = 0.0

    config.data = ConfigDict()
    # The --data_dir that tfds_builder.build filled.
    config.data.dir = "data"
    # What one example is: an image ('views') or both views of a study ('studies').
    config.data.records = "studies" if network == "dual_view" else "views"
    # Of a data set that was built in folds, the one to test on, from 0: the next one validates, the
    # others train. -1: the data set is divided into train, validation and test.
    config.data.fold = -1
    # Side of the blocks of pixels whose counts are summed: 1 keeps 1024x256, 4 gives 256x64.
    config.data.pool = 1
    # Upper limit of a normalised pixel, sqrt(counts / scale).
    config.data.clip = 3.0
    # A split stays in memory if it needs at most this, GiB; else batches are read from disk.
    config.data.cache_gib = 8.0

    config.augmentation = ConfigDict()
    # Probability of exchanging left and right.
    config.augmentation.mirror = 0.5
    # Largest shift, as fractions of the image's height and width.
    config.augmentation.translation = (0.03, 0.05)
    # Probability of a shift.
    config.augmentation.translated = 1.0
    # Largest rotation, degrees.
    config.augmentation.rotation = 3.0
    # Probability of a rotation; the other images keep their noise as the camera gave it.
    config.augmentation.rotated = 0.25
    # Largest change of size: 0.1 gives sizes from 1/1.1 to 1.1. Its probability.
    config.augmentation.scaling = 0.1
    config.augmentation.scaled = 0.0
    # Largest change of brightness, in counts: 0.2 gives factors from 1/1.2 to 1.2. Its probability.
    config.augmentation.intensity = 0.2
    config.augmentation.intensified = 0.0
    # Largest share of the counts that is lost at random, as in a shorter scan. Its probability.
    config.augmentation.thinning = 0.5
    config.augmentation.thinned = 0.0

    # A network of dscint_jax/models, or 'my_package.my_module:build' of your own.
    config.model = network or "dscint"
    # The network's own arguments; see its class.
    config.model_options = model_options(config.model)
    # A .safetensors or .pth file with weights to start from; empty starts from random ones.
    config.init_from = ""

    config.optimizer = ConfigDict()
    # Peak of the schedule: linear warm-up, then half a cosine to zero.
    config.optimizer.learning_rate = 1e-4 if config.model in PLAIN_NETWORKS else 1e-3
    config.optimizer.warmup_steps = 500
    config.optimizer.weight_decay = 1e-2
    config.optimizer.clip_norm = 1.0

    # Steps between two lines of train_metrics.jsonl.
    config.log_every = 50
    # Steps between two validations, each of which saves a checkpoint.
    config.evaluate_every = 500
    # How many of the newest checkpoints are kept beside the best one.
    config.keep_last = 2
    return config


def model_options(network: str) -> ConfigDict:
    """The arguments of a network that one may want to change; any other is set in a copy."""
    options = ConfigDict()
    if ":" in network:
        # One of your own; set its arguments in a copy of this file.
        return options
    # Of the computation: 'float32' or 'bfloat16'; parameters are float32 either way.
    options.dtype = "float32"
    if network == "dscint":
        options.reading = "eight"
        options.width = 1.0
        # One number a convolution; None: as the reading has it, and the first stride 2.
        options.widths = placeholder(tuple)
        options.strides = placeholder(tuple)
        options.pool_after = placeholder(tuple)
        options.kernel = 3
        options.norm = "batch"
        options.norm_layers = (0, -1)
        options.standardised = True
        options.attention = "hybrid"
        options.attention_after = 4
        options.attention_kernel = 7
        options.attention_reduction = 8
        options.pooling = "average_max"
        options.regions = (8, 2)
        options.hidden = 128
        options.dropout = 0.2
    if network == "alexnet" or network.startswith("vgg"):
        options.dropout = 0.5
    if network == "inception_v4":
        options.dropout = 0.2
    if network == "dual_view":
        options.encoder = "resnet18"
        options.encoder_options = ConfigDict()
        options.attention_hidden = 128
        options.dropout = 0.2
    return options
