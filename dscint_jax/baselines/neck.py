"""A network that sees the neck alone."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from dscint_jax.baselines import NECK_STEPS
from dscint_jax.config import Augmentation, Config, Optimizer
from dscint_jax.input_pipeline import (
    HostBatch,
    Scintigrams,
    device_fields,
    host_batches,
    training_order,
)
from dscint_jax.metrics.passes import Evaluation, predict_split
from dscint_jax.metrics.predictions import Predictions
from dscint_jax.training.experiment import make_experiment
from dscint_jax.training.step import eval_step, train_step
from tfds_builder.commandline.errors import UserError

BATCH_SIZE = 64
VALIDATE_EVERY = 50


def neck_config(*, steps: int, seed: int) -> Config:
    """The neck's network and its training: Dscint with four convolutions and no attention."""
    return Config(
        seed=seed,
        steps=steps,
        augmentation=Augmentation(mirror=0.5, translation=(0.06, 0.06)),
        model_options={
            "widths": (16, 32, 48, 48),
            "strides": (2, 1, 1, 1),
            "pool_after": (2, 3),
            "norm_layers": (0, 1, 2, 3),
            "standardised": False,
            "attention": "none",
            "attention_after": 1,
            "regions": (3, 3),
            "hidden": 32,
            "dropout": 0.2,
        },
        optimizer=Optimizer(learning_rate=3e-3, warmup_steps=30),
    )


def neck_predictions(
    necks: dict[str, Scintigrams],
    split: str,
    *,
    steps: int = NECK_STEPS,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Predictions:
    """Trains the neck's network; what it says of one split at its best by validation accuracy.

    Args:
      necks: crops by split; 'train' and 'validation' are used beside `split`.
      split: the one to predict.
      steps: of training; `progress` is told how many were taken.
      seed: of parameters, order, augmentation and dropout; on one machine the same seed gives the
        same predictions.

    Raises:
      UserError: the loss is no longer a number.
    """
    experiment = make_experiment(neck_config(steps=steps, seed=seed), necks["train"].class_counts)
    step_once = jax.jit(functools.partial(train_step, spec=experiment.spec))
    evaluate_once = jax.jit(functools.partial(eval_step, spec=experiment.spec))
    batch_size = min(BATCH_SIZE, len(necks["train"]))

    def predict(state, images: Scintigrams) -> tuple[Predictions, float]:
        def evaluate(batch: HostBatch) -> Evaluation:
            return evaluate_once(state.params, state.batch_stats, device_fields(batch))

        return predict_split(evaluate, images, batch_size=batch_size)

    state, best, highest = experiment.initial_state(), None, None
    order = training_order(necks["train"], batch_size=batch_size, seed=seed)
    batches = host_batches(necks["train"], order=order, start=0)
    for step in range(1, steps + 1):
        state, _ = step_once(state, device_fields(next(batches)))
        if step % VALIDATE_EVERY == 0 or step == steps:
            found, loss = predict(state, necks["validation"])
            if not np.isfinite(loss):
                raise UserError(f"training on necks diverged at step {step}; use another --seed")
            # Of equal accuracies the one of the lower loss.
            rank = (np.sum(found.labels == found.predicted), -loss)
            if highest is None or rank > highest:
                best, highest = state, rank
        progress(step, steps)
    return predict(best, necks[split])[0]
