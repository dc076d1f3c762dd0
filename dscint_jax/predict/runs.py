"""Trained networks that predictions are asked of, each by its work directory or by a model file.

In: places. Out: what is known of each network before it is restored, and how to restore it.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from dscint_jax.canary import check_backend
from dscint_jax.config import Config
from dscint_jax.evaluate.restored import (
    Chosen,
    TrainedNetwork,
    chosen_by,
    load_weights,
    network_of,
    result_of_test,
)
from dscint_jax.export.read_model import read_model
from dscint_jax.input_pipeline import Scintigrams
from dscint_jax.predict.familiarity import Familiarity, familiarity_of
from dscint_jax.run.provenance import attempts_of, classes_of
from dscint_jax.run.workdir import config_of
from dscint_jax.training.experiment import make_experiment


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained network that is not restored yet.

    Attributes:
      place: its work directory, or its model file.
      config: of its training.
      classes: names, in the order of the probabilities.
      fingerprint: of the data set trained on.
      chosen: on validation images; None where the checkpoint was not evaluated.
      remedy: what to do where it was not.
      restore: the network, with images that it is to see.
      familiarity: what it was trained for; None where that is not known.
    """

    place: Path
    config: Config
    classes: tuple[str, ...]
    fingerprint: str
    chosen: Chosen | None
    remedy: str
    restore: Callable[[Scintigrams], TrainedNetwork]
    familiarity: Callable[[], Familiarity | None]


def run_of_workdir(workdir: Path, checkpoint: str) -> Run:
    """The run of a work directory.

    Raises:
      UserError: no run, or no such checkpoint.
    """
    check_backend()
    config, classes = config_of(workdir), classes_of(workdir)
    # Restored now: what was chosen on validation images is of this checkpoint and of no other.
    weights = load_weights(workdir, checkpoint=checkpoint, num_classes=len(classes))

    def restored(images: Scintigrams) -> TrainedNetwork:
        experiment = make_experiment(config, images.class_counts)
        state = (weights.params, weights.batch_stats)
        return network_of(config, experiment, state, images, step=weights.step)

    return Run(
        place=workdir,
        config=config,
        classes=classes,
        fingerprint=attempts_of(workdir)[-1]["dataset_fingerprint"],
        chosen=chosen_by(result_of_test(workdir, weights.step)),
        remedy=f"python -m dscint_jax.evaluate --workdir {workdir} --checkpoint {checkpoint}",
        restore=restored,
        familiarity=lambda: familiarity_of(workdir),
    )


def run_of_file(path: Path) -> Run:
    """The run of a model file, which says nothing of the images of training.

    Raises:
      UserError: it is no file that `dscint_jax.export` wrote, or it is damaged.
    """
    check_backend()
    model = read_model(path)
    return Run(
        place=path,
        config=model.config,
        classes=model.classes,
        fingerprint=model.fingerprint,
        chosen=model.chosen,
        remedy="evaluate the checkpoint, and export it again",
        restore=model.network,
        familiarity=lambda: None,
    )
