"""A trained network, restored: what evaluation, explanations, report and export start from."""

import dataclasses
from pathlib import Path

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dscint_jax import parallel
from dscint_jax.checkpoint import Checkpointer
from dscint_jax.config import check_config
from dscint_jax.experiment import load_images, make_experiment
from dscint_jax.input_pipeline import (
    NO_FOLD,
    NOUNS,
    HostBatch,
    Scintigrams,
    device_fields,
    folds_of,
    open_dataset,
)
from dscint_jax.models import AttentionMaps
from dscint_jax.progress import ProgressBar
from dscint_jax.train_step import Evaluation
from dscint_jax.workdir import check_data, config_of


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """One checkpoint and one split, ready to evaluate.

    Attributes:
      config: the run's.
      step: of the checkpoint.
      last_step: of the newest checkpoint.
      images: the split.
      parameters: how many numbers were trained.
    """

    config: ConfigDict
    step: int
    last_step: int
    images: Scintigrams
    parameters: int
    _mesh: Mesh
    _state: tuple[nnx.State, nnx.State]
    _eval_step: parallel.EvalStep
    _attention_step: parallel.AttentionStep

    @property
    def batch_size(self) -> int:
        """The training's, rounded up to a multiple of the devices that are here now."""
        return -(-self.config.batch_size // self._mesh.size) * self._mesh.size

    def evaluate(self, batch: HostBatch) -> Evaluation:
        """Evaluates a batch of `batch_size` images."""
        return self._eval_step(*self._state, self._on_devices(batch))

    def attention(self, batch: HostBatch) -> AttentionMaps:
        """What the network's attention weighs in a batch of `batch_size` images."""
        return self._attention_step(*self._state, self._on_devices(batch))

    def _on_devices(self, batch: HostBatch) -> parallel.DeviceBatch:
        return parallel.shard_batch(device_fields(batch), self._mesh)


@dataclasses.dataclass(frozen=True)
class TrainedWeights:
    """What one checkpoint holds of a network; no data set is needed.

    Attributes:
      config: the run's.
      step: of the checkpoint.
      params, statistics: of the network.
    """

    config: ConfigDict
    step: int
    params: nnx.State
    statistics: nnx.State


def load_weights(workdir: Path, *, checkpoint: str, num_classes: int) -> TrainedWeights:
    """Restores a network's weights.

    Args:
      workdir: of the training.
      checkpoint: 'best' (by validation F-1), 'last', or a step.
      num_classes: outputs of the network.

    Raises:
      DscintError: no run, or no such checkpoint.
    """
    config = ConfigDict(config_of(workdir))
    check_config(config)
    checkpointer = Checkpointer(workdir, read_only=True)
    step = checkpointer.choose_step(checkpoint)
    experiment = make_experiment(config, (1,) * num_classes)
    shapes = (experiment.params, experiment.statistics)
    states = checkpointer.restore_model(
        step, *parallel.replicated_shapes(shapes, parallel.data_mesh())
    )
    checkpointer.close()
    return TrainedWeights(config, step, *states)


def load_trained(
    workdir: Path, *, split: str, checkpoint: str, data_dir: Path | None = None
) -> TrainedNetwork:
    """Restores a network and opens the split it is to see.

    Args:
      workdir: of the training.
      split: 'train', 'validation' or 'test'.
      checkpoint: 'best' (by validation F-1), 'last', or a step.
      data_dir: a data set to use instead of the one the config names; it may be another one.

    Raises:
      DscintError: no run, no such checkpoint, no data set, or not the one trained on.
    """
    config = ConfigDict(config_of(workdir))
    check_config(config)
    if data_dir is not None:
        config.data.dir = str(data_dir)
        # A data set from elsewhere need not be in folds because the one trained on was.
        if not folds_of(open_dataset(data_dir, config.data.records).info.splits):
            config.data.fold = NO_FOLD
    checkpointer = Checkpointer(workdir, read_only=True)
    step, last_step = checkpointer.choose_step(checkpoint), checkpointer.steps()[-1]
    noun = NOUNS[config.data.records]
    with ProgressBar(f"reading {split} {noun}", noun=noun) as bar:
        images = load_images(config, split, lambda done, total: bar.update(done, total=total))
    if data_dir is None:
        check_data(workdir, images.fingerprint)
    experiment = make_experiment(config, images.class_counts)
    mesh = parallel.data_mesh()
    state = checkpointer.restore_model(
        step, *parallel.replicated_shapes((experiment.params, experiment.statistics), mesh)
    )
    checkpointer.close()
    return TrainedNetwork(
        config=config,
        step=step,
        last_step=last_step,
        images=images,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(experiment.params)),
        _mesh=mesh,
        _state=state,
        _eval_step=parallel.compile_eval_step(experiment.recipe, mesh),
        _attention_step=parallel.compile_attention_step(experiment.recipe, mesh),
    )
