"""Trained runs, applied to studies that are in no data set, one or several together.

In: runs, and studies as they were read. Out: what the runs say of
every image and of every study. An image is computed exactly as `dscint_jax.evaluate` does it.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from dscint_jax.config import STUDIES
from dscint_jax.evaluate.restored import TrainedNetwork
from dscint_jax.explain.maps import Explained, explain
from dscint_jax.export.metadata import weights_digest
from dscint_jax.input_pipeline import HeldImages, Scintigrams
from dscint_jax.input_pipeline.records import STUDY_VIEWS, batch_of, keys_of
from dscint_jax.metrics.calibration import with_temperature
from dscint_jax.metrics.passes import predict_split
from dscint_jax.predict.runs import Run
from tfds_builder.classes import Classes
from tfds_builder.commandline.errors import UserError
from tfds_builder.shards.records import VIEW_NAMES, Record, records_of
from tfds_builder.studies.study import Facts, ReadStudy

NO_CLASSES = Classes((), ())


@dataclasses.dataclass(frozen=True)
class Said:
    """What the runs say of one study.

    Attributes:
      records: its images, or its pairs of views, as the networks see them.
      facts: of the images that the records are made of.
      raw: softmax of every record, the mean over the runs.
      probabilities: of the study: the mean over its records and the runs, each run's softmax at its
        own temperature.
      strange: what is unlike the images that the first run was trained on.
    """

    records: tuple[Record, ...]
    facts: tuple[Facts, ...]
    raw: Float[np.ndarray, "record classes"]
    probabilities: Float[np.ndarray, " classes"]
    strange: tuple[str, ...]


class Networks:
    """Runs that were trained on the same classes, restored when the first studies come.

    Args:
      runs: at least one.

    Attributes:
      classes: names, in the order of the probabilities.
      temperatures: what each run's logits are divided by, chosen on its validation images; 1 of a
        run that was not evaluated.
      uncalibrated: runs that were not.

    Raises:
      UserError: runs that do not fit together.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs, first = runs, runs[0]
        self.classes, self.records = first.classes, first.config.data.records
        for run in runs:
            if run.classes != self.classes:
                raise UserError(
                    f"{run.place} was trained on {', '.join(run.classes)}, {first.place} on "
                    f"{', '.join(self.classes)}; runs of other classes cannot be averaged"
                )
            if run.config.data.records != self.records:
                raise UserError(
                    f"{run.place} reads {run.config.data.records}, {first.place} {self.records}; "
                    f"such runs cannot be averaged"
                )
        self.temperatures = [run.chosen.temperature if run.chosen else 1.0 for run in runs]
        self.uncalibrated = [run for run in runs if run.chosen is None]
        self._restored: list[TrainedNetwork] = []
        self._familiarity = first.familiarity()

    def least_confidence(self, accuracy: float) -> float:
        """The least confidence that evaluation chose for answers of this accuracy.

        Raises:
          UserError: none was chosen, or several runs are averaged, for which none is.
        """
        if len(self._runs) > 1:
            raise UserError(
                "--least_accuracy: a least confidence is chosen for one run, and of several none "
                "is known; give one by --least_confidence"
            )
        (run,) = self._runs
        if run.chosen is None or not run.chosen.least_confidence:
            raise UserError(
                f"--least_accuracy: no least confidence was chosen for this checkpoint of "
                f"{run.place}; first: {run.remedy}"
            )
        points = run.chosen.least_confidence
        if accuracy not in points:
            known = " or ".join(f"{target:g}" for target in points)
            raise UserError(f"--least_accuracy {accuracy:g}: it is chosen for {known}")
        least = points[accuracy]
        if least is None:
            raise UserError(
                f"--least_accuracy {accuracy:g}: the validation studies of {run.place} show no "
                f"threshold that keeps it; give one by --least_confidence"
            )
        return least

    @property
    def knows_training(self) -> bool:
        """Whether images are compared with those of training."""
        return self._familiarity is not None

    @property
    def batch_size(self) -> int:
        """Records that are computed at once, of the run that takes most."""
        return max(run.config.batch_size for run in self._runs)

    @property
    def clip(self) -> float:
        """Upper limit of a normalised pixel that the first run sees."""
        return self._runs[0].config.data.clip

    @property
    def description(self) -> str:
        """The runs, and the steps of those that are restored."""
        steps = [f", step {network.step}" for network in self._restored]
        steps += [""] * (len(self._runs) - len(steps))
        return "; ".join(
            f"{run.config.model} of {run.place}{step}"
            for run, step in zip(self._runs, steps, strict=True)
        )

    @functools.cached_property
    def identity(self) -> str:
        """The runs by all that their answers depend on, without their places; once restored."""
        return "; ".join(
            f"{run.config.model}, seed {run.config.seed}, step {network.step}, data set "
            f"{run.fingerprint[:12]}, weights {weights_digest(network.weights())[:12]}, "
            f"temperature {temperature}"
            for run, network, temperature in zip(
                self._runs, self._restored, self.temperatures, strict=True
            )
        )

    def read(self, studies: Sequence[ReadStudy]) -> list[Said | None]:
        """What the runs say of some studies; None of one without an image that they read."""
        made = [list(records_of(study, self.records, True, NO_CLASSES)) for study in studies]
        records = [{**record, "label": 0} for own in made for record, _ in own]
        if not records:
            return [None] * len(studies)
        raw = []
        for n, run in enumerate(self._runs):
            images = self._scintigrams(records, run.config.data.pool)
            if n == len(self._restored):
                self._restored.append(run.restore(images))
            network = dataclasses.replace(self._restored[n], images=images)
            self._restored[n] = network
            predictions, _ = predict_split(network.evaluate, images, batch_size=network.batch_size)
            raw.append(predictions.probabilities)
        warmed = [with_temperature(p, t) for p, t in zip(raw, self.temperatures, strict=True)]
        mean, warm = np.mean(raw, 0) if len(raw) > 1 else raw[0], np.mean(warmed, 0)
        strange = self._strange(records)
        said, start = [], 0
        for own in made:
            place = slice(start, start + len(own))
            said.append(
                Said(
                    records=tuple(record for record, _ in own),
                    facts=tuple(image.facts for _, images in own for image in images),
                    raw=mean[place],
                    probabilities=warm[place].mean(0),
                    strange=tuple(dict.fromkeys(itertools.chain(*strange[place]))),
                )
                if own
                else None
            )
            start += len(own)
        return said

    def explain(self, studies: Sequence[Said | None]) -> Iterator[list[Explained]]:
        """Where the first run looks in the records of each study that was read, for its class.

        `read` has to come first.
        """
        known = [said for said in studies if said]
        if not known:
            return
        records = [
            {**record, "label": said.probabilities.argmax()}
            for said in known
            for record in said.records
        ]
        images = self._scintigrams(records, self._runs[0].config.data.pool)
        network = dataclasses.replace(self._restored[0], images=images)
        explained = explain(network, np.arange(len(images)))
        for said in known:
            yield list(itertools.islice(explained, len(said.records)))

    def _strange(self, records: Sequence[Record]) -> list[list[str]]:
        """What is unlike training in each record, of those that the first run has just read."""
        if self._familiarity is None:
            return [[] for _ in records]
        spacing = [np.atleast_1d(record["pixel_spacing_mm"]) for record in records]
        known = [next(iter(values[np.isfinite(values)]), np.nan) for values in spacing]
        return self._familiarity.remarks(self._restored[0].images, np.array(known, np.float64))

    def _scintigrams(self, records: Sequence[Record], pool: int) -> Scintigrams:
        """Records, whose classes are not known, as the split of a data set."""
        known, views = records, STUDY_VIEWS
        if self.records != STUDIES:
            views = VIEW_NAMES
            known = [{**record, "view": views.index(record["view"])} for record in records]
        return Scintigrams(
            split="new",
            classes=self.classes,
            class_counts=(len(records), *(0 for _ in self.classes[1:])),
            fingerprint="",
            images=HeldImages(batch_of(known, pool) | keys_of(known, views)),
            records=self.records,
        )
