"""The training loop, top to bottom: data, network, checkpoints, steps.

In: a config and a work directory. Out: checkpoints and metrics in that directory. Interrupted at
any moment and started again, it ends in the same parameters, bit for bit.
"""

import functools
import signal
import sys
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from dscint_jax import parallel
from dscint_jax.checkpoint import Checkpointer, completed_step
from dscint_jax.config import check_config
from dscint_jax.errors import DscintError
from dscint_jax.evaluate import predict_split
from dscint_jax.experiment import load_images, make_experiment
from dscint_jax.input_pipeline import (
    NOUNS,
    HostBatch,
    Scintigrams,
    device_fields,
    evaluation_batches,
    fingerprint_of,
    training_batches,
)
from dscint_jax.interruption import Interruption
from dscint_jax.metrics import five_metrics
from dscint_jax.progress import ProgressBar
from dscint_jax.train_step import Evaluation, TrainState
from dscint_jax.workdir import MetricsLog, check_data, claim, record_attempt


def train(config: ConfigDict, workdir: Path) -> None:
    """Trains until `config.steps`, resuming from the newest checkpoint in `workdir`.

    On SIGTERM or Ctrl-C a checkpoint is saved before the process ends.

    Raises:
      DscintError: a config value, the data set or the work directory does not fit, or the loss
        stopped being finite.
    """
    check_config(config)
    if _is_complete(config, workdir):
        print(f"training is complete: {workdir} holds step {config.steps}")
        return

    # Devices
    mesh = parallel.data_mesh()
    parallel.check_batch_size(config.batch_size, mesh)

    # Data
    train_images = _load(config, "train")
    validation_images = _load(config, "validation")

    # Network
    experiment = make_experiment(config, train_images.class_counts)
    recipe = experiment.recipe
    start = completed_step(workdir) or 0
    if config.init_from and not start:
        state, imported = experiment.imported_state(Path(config.init_from))
    else:
        state, imported = experiment.initial_state(), None
    state = parallel.replicate(state, mesh)
    take_step = parallel.compile_train_step(recipe, mesh)
    evaluate = parallel.compile_eval_step(recipe, mesh)
    print(experiment.overview)
    print(
        f"{mesh.size} x {jax.devices()[0].device_kind}; {len(train_images)} training and "
        f"{len(validation_images)} validation {train_images.noun}; classes "
        + ", ".join(
            f"{name} {count}"
            for name, count in zip(train_images.classes, train_images.class_counts, strict=True)
        ),
        flush=True,
    )
    if imported:
        print(imported, flush=True)

    def predict(state: TrainState, batch: HostBatch) -> Evaluation:
        batch = parallel.shard_batch(device_fields(batch), mesh)
        return evaluate(state.params, state.statistics, batch)

    # A network or a batch that does not fit the images fails here, before anything is written.
    batches = training_batches(
        train_images, batch_size=config.batch_size, seed=config.seed, start=start
    )
    example = next(evaluation_batches(validation_images, batch_size=config.batch_size))
    _check_network(
        config, len(train_images.classes), (take_step, evaluate), state, device_fields(example)
    )

    # Checkpoints
    claim(workdir, config.to_dict())
    check_data(workdir, train_images.fingerprint)
    checkpointer = Checkpointer(workdir, keep_last=config.keep_last)
    if start:
        state = checkpointer.restore_state(start, like=state)
        print(f"resuming after step {start}")
    record_attempt(
        workdir,
        fingerprint=train_images.fingerprint,
        classes=train_images.classes,
        start_step=start,
        imported=imported,
    )

    # Steps
    log = MetricsLog(workdir, start_step=start)
    with (
        Interruption() as interruption,
        ProgressBar(
            "training",
            total=config.steps,
            done=start,
            rate_factor=config.batch_size,
            noun=train_images.noun,
        ) as progress,
    ):
        for step in range(start + 1, config.steps + 1):
            batch = parallel.shard_batch(device_fields(next(batches)), mesh)
            state, metrics = take_step(state, batch)

            if step % config.log_every == 0 or step == config.steps:
                values = {name: float(value) for name, value in metrics.items()}
                values["learning_rate"] = float(experiment.schedule(step - 1))
                log.write(step, values)
                _check_finite(values["loss"], step)
                progress.update(step, f"loss {values['loss']:.3f}")

            if step % config.evaluate_every == 0 or step == config.steps:
                predictions = predict_split(
                    functools.partial(predict, state),
                    validation_images,
                    batch_size=config.batch_size,
                )
                _check_finite(predictions.loss, step)
                scores = {n: float(v) for n, v in five_metrics(predictions.confusion).items()}
                values = {"loss": predictions.loss, **scores}
                log.write(step, {f"validation_{name}": value for name, value in values.items()})
                checkpointer.save(state, values)
                progress.say(
                    f"step {step}: validation loss {predictions.loss:.3f}, "
                    f"accuracy {scores['accuracy']:.3f}, F-1 {scores['f1']:.3f}"
                )

            if interruption.signal and step < config.steps:
                _save_and_stop(checkpointer, state, step, interruption.signal)
    checkpointer.close()
    log.close()


def _is_complete(config: ConfigDict, workdir: Path) -> bool:
    if not (workdir / "config.json").exists():
        return False
    claim(workdir, config.to_dict())
    if completed_step(workdir) != config.steps:
        return False
    check_data(workdir, fingerprint_of(Path(config.data.dir), config.data.records))
    return True


def _load(config: ConfigDict, split: str) -> Scintigrams:
    noun = NOUNS[config.data.records]
    with ProgressBar(f"reading {split} {noun}", noun=noun) as bar:
        return load_images(config, split, lambda done, total: bar.update(done, total=total))


def _check_network(
    config: ConfigDict,
    classes: int,
    steps: tuple[parallel.TrainStep, parallel.EvalStep],
    state: TrainState,
    batch: HostBatch,
) -> None:
    """Raises DscintError unless both steps can be traced and give logits of the right kind."""
    take_step, evaluate = steps
    examples = (
        f"config.model {config.model} does not take examples of shape "
        f"{batch['counts'].shape[1:]} (config.data.records is {config.data.records})"
    )
    try:
        found = jax.eval_shape(evaluate, state.params, state.statistics, batch).probabilities
        wanted = (len(batch["label"]), classes)
        if found.shape != wanted or found.dtype != np.float32:
            raise DscintError(
                f"config.model {config.model} gives logits of shape {found.shape} and type "
                f"{found.dtype}; a batch of {wanted[0]} in {classes} classes needs {wanted} and "
                f"float32"
            )
        jax.eval_shape(take_step, state, batch)
    except DscintError:
        raise
    # A user's own network may raise anything.
    except Exception as error:
        raise DscintError(f"{examples}: {type(error).__name__}: {error}") from error


def _check_finite(loss: float, step: int) -> None:
    if not np.isfinite(loss):
        raise DscintError(
            f"the loss is {loss} at step {step}; lower config.optimizer.learning_rate and use a "
            f"new --workdir"
        )


def _save_and_stop(
    checkpointer: Checkpointer, state: TrainState, step: int, number: signal.Signals
) -> None:
    if checkpointer.last_step() != step:
        checkpointer.save(state)
    checkpointer.close()
    print(f"stopped by {number.name} after step {step}, saved; the same command resumes it")
    # A scheduler's SIGTERM was obeyed, which is success; a person's Ctrl-C is told apart.
    sys.exit(0 if number is signal.SIGTERM else 130)
