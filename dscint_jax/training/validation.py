"""Validation within a run: the whole split, by all processes together.

In: the training state. Out: the scores that decide which checkpoint is the best.
"""

import functools

import numpy as np
from jax.sharding import Mesh

from dscint_jax.input_pipeline import HostBatch, Scintigrams, device_fields
from dscint_jax.mesh import local_rows, shard_batch
from dscint_jax.metrics.predictions import Evaluation, score_split
from dscint_jax.training import parallel
from dscint_jax.training.state import TrainState
from dscint_jax.training.stopping import Interrupted, Stop
from tfds_builder.commandline.errors import UserError


class Validation:
    """Scores states on the validation split.

    Args:
      images: the split.
      eval_step: evaluates a batch on the devices of `mesh`.
      mesh: the devices.
      batch_size: examples a batch, over all processes.
      stop: asked before every batch.
    """

    def __init__(
        self,
        images: Scintigrams,
        eval_step: parallel.EvalStep,
        mesh: Mesh,
        *,
        batch_size: int,
        stop: Stop,
    ):
        self._images, self._eval_step, self._mesh, self._stop = images, eval_step, mesh, stop
        self._batch_size = batch_size
        self._rows = local_rows(batch_size, mesh)

    def score(self, step: int, state: TrainState) -> dict[str, float]:
        """The mean cross-entropy ('loss', nats) and the five metrics.

        Raises:
          Interrupted: someone asked to stop.
          UserError: the loss is not finite.
        """
        scores = score_split(
            functools.partial(self._evaluate, state),
            self._images,
            batch_size=self._batch_size,
            rows=self._rows,
        )
        if not np.isfinite(scores["loss"]):
            raise UserError(
                f"the validation loss is {scores['loss']} at step {step}; lower "
                f"config.optimizer.learning_rate and use a new --workdir"
            )
        return scores

    def _evaluate(self, state: TrainState, batch: HostBatch) -> Evaluation:
        if self._stop.asked():
            raise Interrupted
        fields = shard_batch(device_fields(batch), self._mesh)
        return self._eval_step(*state.evaluated, fields)
