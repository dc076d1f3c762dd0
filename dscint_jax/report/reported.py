"""All that the page is about, read from an evaluated run.

In: a work directory, and the folder of a split's results. Out: a `Reported`, of which every part
was measured with the same checkpoint on the same images.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dscint_jax.baselines.linear_baseline import POOL, linear_baseline
from dscint_jax.baselines.result import Baseline
from dscint_jax.evaluate.evaluate import METRICS_FILE, PREDICTIONS_FILE
from dscint_jax.evaluate.restored import TrainedNetwork, config_at_hand, load_trained
from dscint_jax.explain.explanations import EXPLANATIONS_FILE
from dscint_jax.input_pipeline import copies_of, load_split, open_dataset, sample_of
from dscint_jax.metrics.predictions import Predictions, read_predictions
from dscint_jax.report.data_flow import DataFlow, read_data_flow
from dscint_jax.run.checkpoint import complete_steps
from dscint_jax.run.provenance import attempts_of
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import read_json

MEASURED = ("areas", "calibration", "abstention", "answers", "groups", "studies", "patients")
"""What the page needs of a metrics.json, and those of earlier versions lack."""


@dataclasses.dataclass(frozen=True)
class Reported:
    """All that the page is about.

    Attributes:
      workdir: of the training.
      result: a metrics.json.
      predictions: the same evaluation's.
      explanations: an explanations.json of the same checkpoint and images, or None.
      own: the metrics.json of the data set trained on, where `result` is another one's.
      external: those of other data sets on the same split, by name, where it is not.
      network: the checkpoint evaluated, with the split.
      baseline: on the same images; None: the data set trained on is not at hand.
      flow: where the images come from.
      attempts: of provenance.json.
    """

    workdir: Path
    result: dict[str, Any]
    predictions: Predictions
    explanations: dict[str, Any] | None
    own: dict[str, Any] | None
    external: dict[str, dict[str, Any]]
    network: TrainedNetwork
    baseline: Baseline | None
    flow: DataFlow
    attempts: list[dict[str, Any]]

    @property
    def noun(self) -> str:
        """'images' or 'studies'."""
        return self.network.images.noun


def read_reported(
    workdir: Path, folder: Path, *, data_dir: Path | None, out: Path | None
) -> Reported:
    """Reads an evaluated split, and fits the baseline.

    Args:
      workdir: of the training.
      folder: of the split's results.
      data_dir, out: as for `write_report`.

    Raises:
      UserError: a part is missing, or was measured with another checkpoint or on other images.
    """
    result = read_json(folder / METRICS_FILE)
    lacking = [key for key in MEASURED if key not in result]
    if lacking:
        raise UserError(f"{folder / METRICS_FILE} lacks '{lacking[0]}'; evaluate again")
    predictions = read_predictions(folder / PREDICTIONS_FILE)
    if result["step"] not in complete_steps(workdir / "checkpoints"):
        raise UserError(
            f"{folder / METRICS_FILE} was measured with the checkpoint of step {result['step']}, "
            f"which is gone; evaluate again"
        )
    network = load_trained(
        workdir, split=result["split"], checkpoint=str(result["step"]), data_dir=data_dir
    )
    if network.images.fingerprint != result["dataset_fingerprint"]:
        raise UserError(f"{folder / METRICS_FILE} was measured on another data set; evaluate again")
    if len(predictions) != len(network.images):
        raise UserError(
            f"{folder / PREDICTIONS_FILE} has {len(predictions)} rows, and the split "
            f"{len(network.images)} {network.images.noun}; evaluate again"
        )
    builder = open_dataset(Path(network.config.data.dir), network.config.data.records)
    return Reported(
        workdir=workdir,
        result=result,
        predictions=predictions,
        explanations=_explanations(folder, result),
        own=None if network.trained_on else _own_test(workdir, out),
        external=_external(workdir, out, result["split"]) if network.trained_on else {},
        network=network,
        baseline=_baseline(workdir, network),
        flow=read_data_flow(Path(builder.data_dir), builder.info.metadata),
        attempts=attempts_of(workdir),
    )


def _explanations(folder: Path, result: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `dscint_jax.explain` left beside a metrics.json; None of another checkpoint."""
    if not (folder / EXPLANATIONS_FILE).exists():
        return None
    found = read_json(folder / EXPLANATIONS_FILE)
    same = all(found[key] == result[key] for key in ("step", "dataset_fingerprint"))
    return found if same else None


def _own_test(workdir: Path, out: Path | None) -> dict[str, Any] | None:
    """The test split's result on the data set trained on, whichever split another one's is."""
    files = [place / "eval" / "test" / METRICS_FILE for place in (out, workdir) if place]
    return next((read_json(file) for file in files if file.exists()), None)


def _external(workdir: Path, out: Path | None, split: str) -> dict[str, dict[str, Any]]:
    """Results on other data sets, by their names; those in `out` come before the run's."""
    files = {
        file.parent.parent.name: file
        for place in (workdir, out)
        if place
        for file in (place / "eval").glob(f"*/{split}/{METRICS_FILE}")
    }
    return {name: read_json(file) for name, file in sorted(files.items())}


def _baseline(workdir: Path, network: TrainedNetwork) -> Baseline | None:
    """Fitted on what the network was trained on; None where that is not at hand."""
    config, elsewhere = network.config, None
    if not network.trained_on:
        config = config_at_hand(workdir)
        if config is None:
            return None
        data = network.config.data
        images = load_split(
            Path(data.dir),
            network.images.split,
            pool=POOL,
            cache_gib=math.inf,
            fold=data.fold,
            records=data.records,
        )
        elsewhere = images.as_classes_of(network.images.classes)
    return linear_baseline(
        Path(config.data.dir),
        network.images.split,
        fold=config.data.fold,
        records=config.data.records,
        copies=copies_of(config),
        sample=sample_of(config, "train"),
        ranges=config.augmentation,
        elsewhere=elsewhere,
    )
