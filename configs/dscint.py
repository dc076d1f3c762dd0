"""Dscint at full size: 1024x256 scintigrams, four classes.

    python -m dscint_jax.main --config configs/dscint.py --workdir runs/dscint \
        --config.data.dir=DATA_DIR

Its counts of layers are the published ones, all else is our choice: see the docstring of
dscint_jax/models/dscint.py. Meant for a GPU; no time and no score are given because none was
measured yet.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The experiment."""
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
    # Largest rotation, degrees.
    config.augmentation.rotation = 3.0
    # Probability of a rotation; the other images keep their noise as the camera gave it.
    config.augmentation.rotated = 0.25

    config.model = "dscint"
    # The network's own arguments; see its class.
    config.model_options = ConfigDict()
    config.model_options.widths = (32, 48, 64, 96, 96, 128, 128, 128)
    config.model_options.strides = (2, 1, 1, 1, 1, 1, 1, 1)
    config.model_options.pool_after = (2, 3, 4)
    config.model_options.norm_layers = (0, -1)
    config.model_options.standardised = True
    config.model_options.attention = "hybrid"
    config.model_options.attention_after = 4
    config.model_options.attention_kernel = 7
    config.model_options.pooling = "average_max"
    config.model_options.regions = (8, 2)
    config.model_options.hidden = 128
    config.model_options.dropout = 0.2

    config.optimizer = ConfigDict()
    # Peak of the schedule: linear warm-up, then half a cosine to zero.
    config.optimizer.learning_rate = 1e-3
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
