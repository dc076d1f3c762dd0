"""The training loop, top to bottom: data, network, checkpoints, steps.

In: a config and a work directory. Out: checkpoints and metrics in that directory. Interrupted at
any moment and started again, it ends in the same parameters, bit for bit.
"""

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dscint_jax.canary import check_backend
from dscint_jax.cluster import ALONE, AgreedStop, Cluster, barrier, config_facts, gather, preflight
from dscint_jax.config import Config
from dscint_jax.durations import resolve_durations
from dscint_jax.input_pipeline import (
    NOUNS,
    Accelerators,
    Scintigrams,
    accelerators_of,
    check_patients,
    copies_of,
    device_fields,
    evaluation_batches,
    fingerprint_of,
    sample_of,
    split_size,
    training_feed,
    training_order,
)
from dscint_jax.mesh import (
    AXIS,
    batch_shapes,
    check_batch_size,
    data_mesh,
    fitting_batch_size,
    replicate,
    replicated_shapes,
)
from dscint_jax.models import complete_options
from dscint_jax.run import lock
from dscint_jax.run.checkpoint import Checkpointer, completed_step, resumable
from dscint_jax.run.provenance import (
    Ending,
    attempts_of,
    check_data,
    note_completed,
    record_attempt,
)
from dscint_jax.run.trackers.tracker import import_tracker
from dscint_jax.run.trackers.trackers import Trackers, check_trackers, open_trackers
from dscint_jax.run.workdir import check_claim, claim
from dscint_jax.training import parallel
from dscint_jax.training.experiment import Experiment, load_images, make_experiment
from dscint_jax.training.log import RunLog
from dscint_jax.training.loop import Loop
from dscint_jax.training.nonfinite import check_finite
from dscint_jax.training.profiling import NO_STEPS, Profiler
from dscint_jax.training.state import TrainState
from dscint_jax.training.step import eval_step
from dscint_jax.training.stopping import Interruption
from dscint_jax.training.timing import StepTimer, memory_in_use
from dscint_jax.training.validation import validate
from dscint_jax.weights.import_torch import ImportReport
from tfds_builder.commandline.command import available_cores
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import WriteError, check_writable, remove_parts
from tfds_builder.commandline.places import path_of
from tfds_builder.commandline.progress import ProgressBar, say

LOADING_TIMEOUT_S = 3600.0
"""How long a process waits for the others to read their data."""


def train(
    config: Config,
    workdir: Path,
    *,
    cluster: Cluster = ALONE,
    window: range = NO_STEPS,
    status_when_stopped: int = 0,
) -> None:
    """Trains until `config.steps`, resuming from the newest checkpoint in `workdir`.

    `config.steps` may be more than before, of a finished run too: the steps that were taken stay
    as they are, and those to come have the learning rate that the schedule of the new total gives
    them. With a constant one, and a warm-up that was over, the result is that of a run of the new
    total; with the others the rate goes up again where it had come down. `provenance.json` has the
    total of every attempt.

    A signal that asks for a stop is obeyed as `stopping` says.

    Args:
      config: its durations may be in any unit.
      workdir: where checkpoints and metrics go; the same folder in all processes.
      cluster: the processes that train together.
      window: steps to trace for a profile.
      status_when_stopped: exit status after a stop by any signal but Ctrl-C's.

    Raises:
      UserError: a config value, the data set or the work directory does not fit, another
        process trains there, a disk is full, or the loss stopped being finite.
    """
    check_trackers(config.trackers)
    for name in config.trackers if cluster.is_first else ():
        import_tracker(name)
    init_from = (
        str(path_of(config.init_from, "config.init_from").absolute()) if config.init_from else ""
    )
    config = config.replaced(
        {
            # Absolute, so that the run can be evaluated, and its config taken, from any folder.
            "data.dir": str(path_of(config.data.dir, "config.data.dir").absolute()),
            "init_from": init_from,
            "model_options": complete_options(config.model, config.model_options),
        }
    )
    examples = _size(config, "train")
    # What is missing is said before anything is read.
    _size(config, "validation")
    batch_size = _batch_size(config, workdir, examples)
    if batch_size < config.batch_size:
        _say(
            cluster,
            f"config.batch_size is {config.batch_size}, but there are {examples} training "
            f"{NOUNS[config.data.records]}: each step takes {batch_size}",
        )
    try:
        _size(config, "test")
    except UserError as error:
        _say(cluster, f"note: {error}")
    config = resolve_durations(config, examples=examples, batch_size=batch_size)
    if int(config.optimizer.warmup_steps) >= int(config.steps):
        _say(
            cluster,
            f"note: config.optimizer.warmup_steps is {config.optimizer.warmup_steps}, but there "
            f"are {config.steps} steps: all but the last warm up",
        )
    # Each machine may have places of its own.
    preflight(cluster, config_facts(config.replaced({"data.dir": "", "init_from": ""})))
    if cluster.is_first:
        lock.check_free(workdir)
    if _is_complete(config, workdir):
        # The data set may have moved; a run that may only be read cannot keep where to.
        with contextlib.suppress(WriteError):
            if cluster.is_first:
                claim(workdir, config)
                note_completed(workdir, int(config.steps))
        _say(cluster, f"training is complete: {workdir} holds step {config.steps}")
        return
    if cluster.is_first:
        check_writable(workdir)
    with (
        Interruption(status_when_stopped) as interruption,
        resumable(workdir),
        contextlib.ExitStack() as writing,
    ):
        interruption.nothing_to_save = cluster.process_count == 1
        _train(config, batch_size, workdir, cluster, window, interruption, writing)


def _train(
    config: Config,
    batch_size: int,
    workdir: Path,
    cluster: Cluster,
    window: range,
    interruption: Interruption,
    writing: contextlib.ExitStack,
) -> None:
    # Devices
    check_backend()
    mesh = data_mesh()
    check_batch_size(batch_size, mesh, accumulation=config.accumulation, pairs=config.mixup > 0)

    # Data
    training = _load(cluster, config, "train", accelerators=_room(cluster, mesh))
    validation = _load(cluster, config, "validation", beside=training)
    preflight(cluster, {"the data set's fingerprint": training.fingerprint}, LOADING_TIMEOUT_S)
    if training.copies is None:
        check_patients(training, validation)
    order = training_order(
        training, batch_size=batch_size, seed=config.seed, sampling=config.data.sampling
    )

    # Network
    experiment = make_experiment(config, training.class_counts, AXIS)
    new = completed_step(workdir) is None
    imported = None
    if new:
        state, imported = _first_state(config, experiment, mesh)
    else:
        state = replicated_shapes(experiment.state_shapes, mesh)
    take_step = parallel.compile_train_step(experiment.spec, mesh, config.spmd)
    evaluate = parallel.compile_inference(eval_step, experiment.spec, mesh)
    _say(cluster, experiment.overview)
    _say(cluster, _in_words(mesh, cluster, training, validation))
    if imported:
        _say(cluster, str(imported))

    # A network that does not fit the images fails here, before anything is written.
    example = next(evaluation_batches(validation, batch_size=batch_size))
    # JAX keeps these traces for the steps to come. pmap takes arrays that are on the devices.
    traced = (
        take_step if config.spmd == "jit" else parallel.compile_train_step(experiment.spec, mesh)
    )
    shapes = batch_shapes(device_fields(example), mesh)
    _check_network(config, len(training.classes), traced, evaluate, state, shapes)

    # Checkpoints
    interruption.nothing_to_save = False
    if cluster.is_first:
        writing.enter_context(lock.held(workdir))
        remove_parts(workdir)
        fewer = claim(workdir, config)
        if fewer:
            _say(
                cluster,
                f"trained on: {config.steps} steps instead of {fewer}; from here on the learning "
                f"rate is that of {config.steps}",
            )
        check_data(workdir, training.fingerprint)
    # Reading, tracing and importing may take one machine much longer than another.
    barrier(cluster, "work directory", LOADING_TIMEOUT_S)
    checkpointer = Checkpointer(workdir, keep_last=config.keep_last, keep_best=config.keep_best)
    restored = checkpointer.restore_newest(state.items)
    if restored is not None:
        state = TrainState.from_items(restored)
    elif not new:
        _say(cluster, "no checkpoint is whole: training starts anew")
        state, imported = _first_state(config, experiment, mesh)
    start = int(state.step)
    if start:
        _say(cluster, f"resuming after step {start}")
        begun, now = attempts_of(workdir), available_cores()
        before = begun[-1].get("cores", now) if begun else now
        if jax.default_backend() == "cpu" and before != now:
            _say(
                cluster,
                f"note: {before} cores took the steps so far, and {now} go on: sums are rounded "
                "otherwise, so the bits are not those of a run without a stop",
            )

    # Steps
    timer = StepTimer(batch_size)
    feed = training_feed(
        training,
        order=order,
        mesh=mesh,
        cache=training.placement.place,
        start=start,
        threads=config.data.threads,
    )
    record_attempt(
        workdir,
        fingerprint=training.fingerprint,
        classes=training.classes,
        start_step=start,
        steps=int(config.steps),
        batch_size=batch_size,
        imported=imported,
        spmd=config.spmd,
    )
    check = functools.partial(
        check_finite,
        workdir=workdir,
        cluster=cluster,
        images=training,
        order=order,
        seed=config.seed,
    )
    with (
        Ending(workdir, start, functools.partial(_details, timer, start)) as ending,
        contextlib.closing(
            open_trackers(config.trackers, workdir, start, config.to_dict(), config.project)
            if cluster.is_first
            else Trackers()
        ) as trackers,
        AgreedStop(interruption.wish, cluster) as stop,
        Profiler(workdir, window, shown=cluster.is_first) as profiler,
        contextlib.closing(feed) as batches,
        ProgressBar(
            "training",
            total=int(config.steps),
            done=start,
            rate_factor=batch_size,
            noun=training.noun,
            unit="step",
            shown=cluster.is_first,
        ) as progress,
    ):
        loop = Loop(
            steps=int(config.steps),
            log_every=int(config.log_every),
            evaluate_every=int(config.evaluate_every),
            take_step=take_step,
            batches=batches,
            log=RunLog(trackers, timer, progress, check, experiment.schedule, start=start),
            check_finite=check,
            validate=functools.partial(
                validate,
                images=validation,
                eval_step=evaluate,
                mesh=mesh,
                batch_size=batch_size,
                stop=stop,
            ),
            checkpointer=checkpointer,
            stop=stop,
            timer=timer,
            profiler=profiler,
            ending=ending,
            interruption=interruption,
            cluster=cluster,
        )
        loop.run(state, start)
    _say(cluster, timer.summary(int(config.steps) - start))


def _details(timer: StepTimer, start: int, step: int) -> dict[str, Any]:
    """What provenance.json tells of an attempt's time and memory."""
    return {
        "seconds": {name: round(value, 3) for name, value in timer.totals().items()},
        "memory": memory_in_use(),
        "summary": timer.summary(step - start),
    }


def _first_state(
    config: Config, experiment: Experiment, mesh: Mesh
) -> tuple[TrainState, ImportReport | None]:
    """The state before the first step, on every device, and what of it came from a file."""
    if not config.init_from:
        return replicate(experiment.initial_state(), mesh), None
    state, imported = experiment.imported_state(Path(config.init_from))
    return replicate(state, mesh), imported


def _size(config: Config, split: str) -> int:
    data = config.data
    return split_size(
        Path(data.dir),
        split,
        fold=data.fold,
        records=data.records,
        copies=copies_of(config),
        sample=sample_of(config, split),
    )


def _batch_size(config: Config, workdir: Path, examples: int) -> int:
    """Examples a step: what the config asks for, or what a smaller training split has.

    A run goes on with what it began with, which its provenance tells.
    """
    begun = attempts_of(workdir)
    if config.batch_size > examples and begun and (size := begun[-1].get("batch_size")):
        if size % (jax.device_count() * config.accumulation):
            raise UserError(
                f"{workdir} was begun with {size} {NOUNS[config.data.records]} a step, which "
                f"{jax.device_count()} devices cannot share evenly; resume it on as many as then"
            )
        return size
    return fitting_batch_size(
        config.batch_size,
        examples,
        jax.device_count(),
        accumulation=config.accumulation,
        pairs=config.mixup > 0,
    )


def _is_complete(config: Config, workdir: Path) -> bool:
    if not (workdir / "config.json").exists():
        return False
    check_claim(workdir, config)
    steps = int(config.steps)
    if completed_step(workdir) != steps:
        return False
    check_data(workdir, fingerprint_of(Path(config.data.dir), config.data.records))
    checkpointer = Checkpointer(workdir, read_only=True)
    return checkpointer.is_whole(steps) and checkpointer.has_scores(steps)


def _room(cluster: Cluster, mesh: Mesh) -> Accelerators:
    """The accelerators, with the least memory that is free in any process."""
    here = accelerators_of(mesh)
    free = [int(text) for text in gather(cluster, "free memory", str(here.free or -1))]
    return dataclasses.replace(here, free=min(free) if min(free) >= 0 else None)


def _load(cluster: Cluster, config: Config, split: str, **options: Any) -> Scintigrams:
    noun = NOUNS[config.data.records]
    with ProgressBar(f"reading {split} {noun}", noun=noun, shown=cluster.is_first) as bar:
        return load_images(config, split, bar.reached, **options)


def _in_words(mesh: Mesh, cluster: Cluster, training: Scintigrams, validation: Scintigrams) -> str:
    processes = f" in {cluster.process_count} processes" if cluster.process_count > 1 else ""
    classes = zip(training.classes, training.class_counts, strict=True)
    return (
        f"{mesh.size} x {jax.devices()[0].device_kind}{processes}; {len(training)} training and "
        f"{len(validation)} validation {training.noun}; classes "
        + ", ".join(f"{name} {count}" for name, count in classes)
        + f"\n{training.placement.reason}"
    )


def _say(cluster: Cluster, text: str) -> None:
    if cluster.is_first:
        say(text)


def _check_network(
    config: Config,
    classes: int,
    take_step: parallel.TrainStep,
    evaluate: parallel.EvalStep,
    state: TrainState,
    batch: dict[str, jax.ShapeDtypeStruct],
) -> None:
    """Raises UserError unless both steps can be traced and give logits of the right kind."""
    try:
        found = jax.eval_shape(evaluate, *state.evaluated, batch).probabilities
        wanted = (*batch["label"].shape, classes)
        if found.shape != wanted or found.dtype != np.float32:
            raise UserError(
                f"config.model {config.model} gives logits of shape {found.shape} and type "
                f"{found.dtype}; a batch of {wanted[0]} in {classes} classes needs {wanted} and "
                f"float32"
            )
        jax.eval_shape(take_step, state, batch)
    except UserError:
        raise
    # A user's own network may raise anything.
    except Exception as error:
        raise UserError(
            f"config.model {config.model} does not take examples of shape "
            f"{batch['counts'].shape[1:]} (config.data.records is {config.data.records}): "
            f"{type(error).__name__}: {error}"
        ) from error
