"""A trained network, restored: what evaluation, explanations, report and export start from."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from dscint_jax.canary import check_backend
from dscint_jax.config import PATIENT, Config
from dscint_jax.input_pipeline import (
    NO_FOLD,
    NOUNS,
    HostBatch,
    Leakage,
    Scintigrams,
    check_patients,
    device_fields,
    fingerprint_of,
    folds_of,
    leakage_of,
    open_dataset,
)
from dscint_jax.mesh import DeviceBatch, data_mesh, replicate, replicated_shapes, shard_batch
from dscint_jax.metrics.passes import Evaluation
from dscint_jax.pytree import named_leaves
from dscint_jax.run.checkpoint import Checkpointer
from dscint_jax.run.provenance import attempts_of, check_data, classes_of
from dscint_jax.run.workdir import config_of
from dscint_jax.training import parallel
from dscint_jax.training.augment import images_seen
from dscint_jax.training.experiment import Experiment, load_images, make_experiment
from dscint_jax.training.state import evaluated_items
from dscint_jax.training.step import NetworkMaps, eval_step, maps_step
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import read_json
from tfds_builder.commandline.progress import ProgressBar

Weights = tuple[nnx.State, nnx.State]
"""Parameters and statistics, or the shapes of both."""


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """One checkpoint and one split, ready to evaluate.

    Attributes:
      config: the run's.
      step: of the checkpoint.
      images: the split.
      trained_on: whether it was trained on the data set that the split is of.
    """

    config: Config
    step: int
    images: Scintigrams
    trained_on: bool
    _mesh: Mesh
    _state: Weights
    _eval_step: parallel.EvalStep
    _maps_step: parallel.MapsStep

    @property
    def batch_size(self) -> int:
        """The training's, rounded up to a multiple of the devices that are here now."""
        return -(-self.config.batch_size // self._mesh.size) * self._mesh.size

    @property
    def parameters(self) -> int:
        """How many numbers were trained."""
        return sum(leaf.size for leaf in jax.tree.leaves(self._state[0]))

    def weights(self) -> dict[str, np.ndarray]:
        """Parameters and statistics, by their paths."""
        return {name: np.asarray(leaf) for name, leaf in named_leaves(self._state).items()}

    def evaluate(self, batch: HostBatch) -> Evaluation:
        """Evaluates a batch of `batch_size` images."""
        return self._eval_step(*self._state, self._on_devices(batch))

    def maps(self, batch: HostBatch) -> NetworkMaps:
        """Where it looks in a batch of `batch_size` images, for the classes that `label` names."""
        return self._maps_step(*self._state, self._on_devices(batch))

    def with_random_weights(self) -> "TrainedNetwork":
        """The same as it is before its first step, with weights drawn by another seed."""
        config = self.config.replaced({"seed": self.config.seed ^ 1})
        state = make_experiment(config, self.images.class_counts).initial_state()
        weights = replicate((state.params, state.batch_stats), self._mesh)
        return dataclasses.replace(self, _state=weights)

    def as_seen(self, batch: HostBatch) -> np.ndarray:
        """What the network sees of a batch; see `images_seen`."""
        return images_seen(batch, self.config.augmentation)

    def at(self, workdir: Path, checkpoint: str) -> "TrainedNetwork":
        """The same with the weights of another checkpoint of its run; see `load_trained`."""
        step, state = _restored(workdir, checkpoint, self._state)
        return dataclasses.replace(self, step=step, _state=state)

    def on(self, workdir: Path, *, split: str, data_dir: Path | None = None) -> "TrainedNetwork":
        """The same with another split, or that of another data set; see `load_trained`."""
        config, images, trained_on = _open(workdir, config_of(workdir), split, data_dir)
        return dataclasses.replace(self, config=config, images=images, trained_on=trained_on)

    def leakage(self) -> Leakage | None:
        """How much of the split training knows, record by record; None of another data set.

        Raises:
          UserError: the data set is split by patient, and one is on both sides.
        """
        if not self.trained_on:
            return None
        if self.images.split == "train":
            return leakage_of(self.images.keys(), self.images.keys())
        training = load_images(self.config, "train", cache="none", beside=self.images)
        with ProgressBar("looking for patients in training", noun=training.noun) as bar:
            if training.copies is None:
                check_patients(training, self.images, bar.reached)
            return leakage_of(training.keys(bar.reached), self.images.keys(bar.reached))

    def _on_devices(self, batch: HostBatch) -> DeviceBatch:
        return shard_batch(device_fields(batch), self._mesh)


@dataclasses.dataclass(frozen=True)
class TrainedWeights:
    """What one checkpoint holds of a network; no data set is needed."""

    config: Config
    step: int
    params: nnx.State
    batch_stats: nnx.State


def load_weights(workdir: Path, *, checkpoint: str, num_classes: int) -> TrainedWeights:
    """Restores a network's weights; arguments as for `load_trained`.

    Raises:
      UserError: no run, or no such checkpoint.
    """
    config = config_of(workdir)
    like = make_experiment(config, (1,) * num_classes).state_shapes
    step, state = _restored(workdir, checkpoint, (like.params, like.batch_stats))
    return TrainedWeights(config, step, *state)


def _restored(workdir: Path, checkpoint: str, like: Weights) -> tuple[int, Weights]:
    """The step of a checkpoint, and its weights on all devices, shaped as those given."""
    items = evaluated_items(*replicated_shapes(like, data_mesh()))
    with contextlib.closing(Checkpointer(workdir, read_only=True)) as checkpointer:
        step, weights = checkpointer.restore_first(checkpoint, items)
    return step, (weights["params"], weights["batch_stats"])


def load_trained(
    workdir: Path, *, split: str, checkpoint: str, data_dir: Path | None = None
) -> TrainedNetwork:
    """Restores a network and opens the split it is to see.

    Args:
      workdir: of the training.
      split: 'train', 'validation' or 'test'.
      checkpoint: 'best' (by validation F-1), 'latest', or a step.
      data_dir: a data set to use instead of the one the config names; it may be another one.

    Raises:
      UserError: no run, no such checkpoint, no data set, or not the one trained on; or the
        backend computes wrongly.
    """
    config = config_of(workdir)
    check_backend()
    # Images take long to read.
    with contextlib.closing(Checkpointer(workdir, read_only=True)) as checkpointer:
        checkpointer.check(checkpoint)
    config, images, trained_on = _open(workdir, config, split, data_dir)
    experiment = make_experiment(config, images.class_counts)
    like = experiment.state_shapes
    step, state = _restored(workdir, checkpoint, (like.params, like.batch_stats))
    return network_of(config, experiment, state, images, step=step, trained_on=trained_on)


def network_of(
    config: Config,
    experiment: Experiment,
    state: Weights,
    images: Scintigrams,
    *,
    step: int,
    trained_on: bool = False,
) -> TrainedNetwork:
    """A network of weights that are on all devices, and images that it is to see.

    The experiment is made of the config; the rest is as in `TrainedNetwork`.
    """
    mesh = data_mesh()
    return TrainedNetwork(
        config=config,
        step=step,
        images=images,
        trained_on=trained_on,
        _mesh=mesh,
        _state=state,
        _eval_step=parallel.compile_inference(eval_step, experiment.spec, mesh),
        _maps_step=parallel.compile_inference(maps_step, experiment.spec, mesh),
    )


def _open(
    workdir: Path, config: Config, split: str, data_dir: Path | None
) -> tuple[Config, Scintigrams, bool]:
    """A run's config for a split, its images, and whether its data set is the one trained on."""
    trained_on = data_dir is None or is_trained_on(workdir, data_dir)
    if data_dir is not None:
        config = config.replaced({"data.dir": str(data_dir)})
        folds = folds_of(open_dataset(data_dir, config.data.records).info.splits)
        if folds and config.data.fold == NO_FOLD and not trained_on:
            raise UserError(
                f"{data_dir} is divided into {len(folds)} folds, and {workdir} was trained without "
                f"any; build it with --split_fractions 0 0 1 to test on all of it"
            )
        if not folds:
            # A data set from elsewhere need not be in folds because the one trained on was.
            config = config.replaced({"data.fold": NO_FOLD})
    if not trained_on:
        # Copies, or a share of the patients, are a way of training on a data set; of another one,
        # the images are tested.
        config = config.replaced({"protocol": PATIENT, "data.training_share": 1.0})
    noun = NOUNS[config.data.records]
    with ProgressBar(f"reading {split} {noun}", noun=noun) as bar:
        # Where training kept its images is of no concern here.
        images = load_images(config, split, bar.reached, cache="auto")
    if data_dir is None:
        check_data(workdir, images.fingerprint)
    classes = classes_of(workdir)
    if images.classes != classes:
        images = images.as_classes_of(classes)
    return config, images, trained_on


def validation_images(workdir: Path, network: TrainedNetwork) -> Scintigrams | None:
    """The validation images of the data set trained on, which thresholds are chosen on.

    Returns:
      None where the network's images are of that data set and not its test split, or where that
      data set is not at hand.
    """
    if network.trained_on:
        if network.images.split != "test":
            return None
        return load_images(network.config, "validation", cache="auto", beside=network.images)
    config = config_at_hand(workdir)
    return config and load_images(config, "validation", cache="auto")


def config_at_hand(workdir: Path) -> Config | None:
    """A run's config; None where the data set trained on is not where it says."""
    config = config_of(workdir)
    try:
        return config if is_trained_on(workdir, Path(config.data.dir)) else None
    except UserError:
        return None


def is_trained_on(workdir: Path, data_dir: Path) -> bool:
    """Whether a data set, wherever it lies, is the one that a run was trained on."""
    fingerprint = fingerprint_of(data_dir, config_of(workdir).data.records)
    return any(a["dataset_fingerprint"] == fingerprint for a in attempts_of(workdir)[-1:])


def result_of_test(workdir: Path, step: int) -> dict[str, Any]:
    """The metrics.json of a checkpoint on the test split of its data set.

    Returns:
      Nothing where this checkpoint was not evaluated, or was with mirror images, which is another
      reader.
    """
    path = workdir / "eval" / "test" / "metrics.json"
    result = read_json(path) if path.exists() else {}
    is_its_own = result.get("step") == step and not result.get("test_time_augmentation")
    return result if is_its_own else {}


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What evaluation chose for a checkpoint on validation images.

    Attributes:
      temperature: logits are divided by it.
      least_confidence: by the accuracy of answers that it is for; None where none was found.
    """

    temperature: float
    least_confidence: dict[float, float | None]


def chosen_by(result: Mapping[str, Any]) -> Chosen | None:
    """What a metrics.json of the test split says was chosen; None of an empty one."""
    if not result or result["calibration"]["temperature"] is None:
        return None
    return Chosen(
        temperature=result["calibration"]["temperature"],
        least_confidence={
            point["accuracy_target"]: point["least_confidence"]
            for point in result.get("answers") or ()
        },
    )
