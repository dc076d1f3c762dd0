"""From a config to the objects of a run: the network, the spec of its steps, its data.

Training and evaluation both start here, so they cannot disagree about what a config means.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from clu import parameter_overview
from flax import nnx

from dscint_jax import models
from dscint_jax.config import Config
from dscint_jax.input_pipeline import Accelerators, Scintigrams, copies_of, load_split, sample_of
from dscint_jax.pytree import named_leaves
from dscint_jax.random_streams import stream_key
from dscint_jax.training.losses import class_weights, make_loss
from dscint_jax.training.optimizers import make_optimizer, make_schedule
from dscint_jax.training.state import TrainState
from dscint_jax.training.step import StepSpec, split_network
from dscint_jax.weights.import_torch import ImportReport, import_weights
from tfds_builder.commandline.errors import UserError

QUICKLY = {"xla_backend_optimization_level": 1}
"""Compiler options, on CPUs, of what runs once: the drawing of the quickstart's weights compiles in
3 s of processor time instead of 12."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A network to train or to evaluate; nothing is computed yet.

    Attributes:
      spec: what the steps need.
      state_shapes: shapes and types of a whole state.
      initial_state: makes the state before the first step.
      imported_state: the same with the weights of a file, and what was taken from it.
      schedule: learning rate by step.
    """

    spec: StepSpec
    state_shapes: TrainState
    initial_state: Callable[[], TrainState]
    imported_state: Callable[[Path], tuple[TrainState, ImportReport]]
    schedule: optax.Schedule

    @property
    def overview(self) -> str:
        """A printable table of the parameters."""
        arrays = named_leaves(nnx.to_pure_dict(self.state_shapes.params))
        return parameter_overview.get_parameter_overview(arrays, include_stats=False)


def make_experiment(
    config: Config, class_counts: tuple[int, ...], axis: str | None = None
) -> Experiment:
    """Builds the network and the spec of its steps.

    Args:
      config: with durations in steps.
      class_counts: images of each class; their number is that of the network's outputs.
      axis: name of the axis that training batches are divided over; None for one device.

    Raises:
      UserError: a field's value does not fit.
    """

    def build() -> nnx.Module:
        return models.build(
            config.model,
            num_classes=len(class_counts),
            rngs=nnx.Rngs(params=stream_key(config.seed, "params")),
            options=config.model_options,
        )

    network = nnx.eval_shape(build)
    head = getattr(network, "HEAD", "")
    if config.optimizer.name == "muon" and not head:
        raise UserError(
            f"config.optimizer.name 'muon' leaves the last layer to AdamW: give {config.model} a "
            "HEAD, the name of that layer"
        )
    training, inference, params, batch_stats = split_network(network, axis)
    schedule = make_schedule(config.optimizer, steps=int(config.steps))
    spec = StepSpec(
        training=training,
        inference=inference,
        optimizer=make_optimizer(config.optimizer, schedule, head=head),
        augmentation=config.augmentation,
        loss=make_loss(
            class_weights=class_weights(config.class_weights, class_counts),
            label_smoothing=config.label_smoothing,
            focal_gamma=config.focal_gamma if config.loss == "focal" else 0.0,
        ),
        clip=config.data.clip,
        seed=config.seed,
        mixup=config.mixup,
        ema=config.ema,
        accumulation=config.accumulation,
        axis=axis,
    )

    def drawn() -> tuple[nnx.State, nnx.State]:
        quickly = QUICKLY if jax.default_backend() == "cpu" else None
        return jax.jit(lambda: split_network(build())[2:], compiler_options=quickly)()

    def state_of(params: nnx.State, batch_stats: nnx.State) -> TrainState:
        # A copy, because the step is given both and may write over either.
        ema = jax.tree.map(jnp.copy, (params, batch_stats)) if config.ema else None
        step = jnp.zeros((), jnp.int32)
        return TrainState(step, params, batch_stats, spec.optimizer.init(params), ema)

    def imported_state(path: Path) -> tuple[TrainState, ImportReport]:
        network = nnx.merge(training, *drawn())
        report = import_weights(path, network, name=config.model)
        return state_of(*split_network(network)[2:]), report

    return Experiment(
        spec=spec,
        state_shapes=jax.eval_shape(state_of, params, batch_stats),
        initial_state=lambda: state_of(*drawn()),
        imported_state=imported_state,
        schedule=schedule,
    )


def load_images(
    config: Config,
    split: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    cache: str | None = None,
    accelerators: Accelerators | None = None,
    beside: Scintigrams | None = None,
) -> Scintigrams:
    """Opens a split as the config describes; arguments as for `load_split`.

    `cache` is None where the images stay as the config says.
    """
    return load_split(
        Path(config.data.dir),
        split,
        pool=config.data.pool,
        cache_gib=config.data.cache_gib,
        cache=cache or config.data.cache,
        fold=config.data.fold,
        records=config.data.records,
        copies=copies_of(config),
        sample=sample_of(config, split),
        accelerators=accelerators,
        beside=beside,
        progress=progress,
    )
