"""Validation within a run: the whole split, by all processes together.

In: the training state. Out: the scores that decide which checkpoint is the best.
"""

import numpy as np
from jax.sharding import Mesh

from dscint_jax.cluster import AgreedStop
from dscint_jax.input_pipeline import HostBatch, Scintigrams, device_fields
from dscint_jax.mesh import local_rows, shard_batch
from dscint_jax.metrics.passes import Evaluation, score_split
from dscint_jax.training import parallel
from dscint_jax.training.state import TrainState
from dscint_jax.training.stopping import Interrupted
from tfds_builder.commandline.errors import UserError


def validate(
    step: int,
    state: TrainState,
    *,
    images: Scintigrams,
    eval_step: parallel.EvalStep,
    mesh: Mesh,
    batch_size: int,
    stop: AgreedStop,
) -> dict[str, float]:
    """The mean cross-entropy ('loss', nats) and the five metrics of a state.

    Args:
      step, state: the state, and the step that it is after.
      images: the validation split.
      eval_step, mesh: evaluates a batch on these devices.
      batch_size: examples a batch, over all processes.
      stop: asked before every batch.

    Raises:
      Interrupted: someone asked to stop.
      UserError: the loss is not finite.
    """

    def evaluate(batch: HostBatch) -> Evaluation:
        if stop.asked():
            raise Interrupted
        return eval_step(*state.evaluated, shard_batch(device_fields(batch), mesh))

    rows = local_rows(batch_size, mesh)
    scores = score_split(evaluate, images, batch_size=batch_size, rows=rows)
    if not np.isfinite(scores["loss"]):
        raise UserError(
            f"the validation loss is {scores['loss']} at step {step}; lower "
            f"config.optimizer.learning_rate and use a new --workdir"
        )
    return scores
