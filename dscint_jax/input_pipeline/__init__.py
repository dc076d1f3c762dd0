"""From the TFDS data set to batches: which images, in which order, as which arrays.

dataset     where the data set lies, and which of its splits make up one split of a run
records     its records as arrays, read from the disk or held in memory
protocol    which images a split has, copies among them; who is on both sides
placement   whether images stay on the accelerators, in memory or on the disk
scintigrams one split of a run, at random access
order       which images a step has: a pure function of (seed, step)
feeds       batches in that order, on the host or on the devices
device_cache  a copy of the images on the devices, and batches gathered from it
"""

from dscint_jax.input_pipeline.dataset import (
    NO_FOLD,
    SPLITS,
    check_split,
    fingerprint_of,
    folds_of,
    open_dataset,
    parts_of,
)
from dscint_jax.input_pipeline.device_cache import DeviceCache
from dscint_jax.input_pipeline.feeds import (
    device_fields,
    evaluation_batches,
    host_batches,
    training_feed,
)
from dscint_jax.input_pipeline.order import index_batches, training_order
from dscint_jax.input_pipeline.placement import Accelerators, accelerators_of, place
from dscint_jax.input_pipeline.protocol import (
    Leakage,
    Sample,
    copies_of,
    leakage_in_words,
    leakage_of,
    sample_of,
)
from dscint_jax.input_pipeline.records import (
    IDENTITY_FIELDS,
    HeldImages,
    HostBatch,
    sum_pool,
)
from dscint_jax.input_pipeline.scintigrams import (
    NOUNS,
    Scintigrams,
    check_patients,
    load_split,
    split_size,
)
