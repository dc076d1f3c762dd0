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
from ml_collections.config_dict import FieldReference, placeholder

# Without normalisation layers these diverge at the learning rate of the others.
PLAIN_NETWORKS = ("alexnet", "vgg16", "vgg19")


def get_config(network: str = "dscint") -> ConfigDict:
    """The experiment, with any of the networks."""
    config = ConfigDict()

    # Everything random follows from this number.
    config.seed = 0
    # Optimiser steps, or '30 epochs', '600_000 examples'; the learning rate's schedule ends with
    # them.
    config.steps = duration(20_000)
    # Images a step, over all devices together.
    config.batch_size = 32
    # Parts that a batch is computed in, one after the other, where memory does not hold it at once.
    # BatchNorm then normalises by each part.
    config.accumulation = 1
    # How steps run on many devices: 'jit' (the compiler divides the batch) or 'pmap' (each device
    # its own part); both end in the same numbers, up to rounding.
    config.spmd = "jit"
    # 'patient': no patient on both sides of a split. 'augmented': as the published system, every
    # image is copied with random transformations first, and the copies are split: to measure what
    # that leaks, not to report.
    config.protocol = "patient"
    # 'cross_entropy', or 'focal' (Lin et al. 2017), which turns to what is hard by focal_gamma.
    config.loss = "cross_entropy"
    config.focal_gamma = 2.0
    # Weights of the classes in the loss: 'balanced' (by inverse frequency) or 'none'.
    config.class_weights = "none"
    # Share of the target that is spread over all classes.
    config.label_smoothing = 0.0
    # Mixes pairs of images and their labels (Zhang et al. 2018), in shares drawn from
    # Beta(mixup, mixup); 0 does not.
    config.mixup = 0.0
    # Decay of the running mean of the parameters that is validated and tested, such as 0.999; 0
    # tests the parameters themselves.
    config.ema = 0.0

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
    # Where training images stay: on the accelerator ('device'), in this machine's memory ('host')
    # or on the disk ('none'); 'auto' takes the first that has room. The batches are the same.
    config.data.cache = "auto"
    # What 'auto' may take of the machine's memory for a split, GiB.
    config.data.cache_gib = 8.0
    # Threads that read images.
    config.data.threads = 2
    # 'shuffled': every image once an epoch. 'balanced': every class equally often.
    config.data.sampling = "shuffled"
    # Copies of every image under protocol 'augmented', itself among them.
    config.data.copies = 8

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
    # 'adamw', or 'sgd' with momentum; in both what has one axis does not decay.
    config.optimizer.name = "adamw"
    # Of 'sgd' (Nesterov's).
    config.optimizer.momentum = 0.9
    # Peak of the schedule, after a linear warm-up.
    config.optimizer.learning_rate = 1e-4 if config.model in PLAIN_NETWORKS else 1e-3
    # What follows: half a 'cosine' to zero, a 'linear' way there, or 'constant'.
    config.optimizer.schedule = "cosine"
    # Steps, or '5 %', '2 epochs', as all durations here.
    config.optimizer.warmup_steps = duration(500)
    config.optimizer.weight_decay = 1e-2
    config.optimizer.clip_norm = 1.0

    # Steps between two lines of train_metrics.jsonl.
    config.log_every = duration(50)
    # Steps between two validations, each of which saves a checkpoint.
    config.evaluate_every = duration(500)
    # How many of the newest checkpoints are kept, and how many of the best by validation F-1.
    config.keep_last = 2
    config.keep_best = 1
    # Where metrics go beside train_metrics.jsonl: 'tensorboard', 'wandb', 'mlflow'.
    config.trackers = ("tensorboard",)
    # What wandb and mlflow call the project.
    config.project = "dscint"
    return config


def duration(steps: int) -> FieldReference:
    """A number of steps in whose place a text such as '30 epochs' may be set."""
    return FieldReference(steps, field_type=object)


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
