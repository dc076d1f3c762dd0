"""Trained runs, applied to studies that are in no data set, one or several together.

In: work directories that training filled, and studies as they were read. Out: what the runs say of
every image and of every study. An image is computed exactly as `dscint_jax.evaluate` does it.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from dscint_jax.config import STUDIES
from dscint_jax.evaluate.restored import (
    TrainedNetwork,
    check_checkpoint,
    restore,
    temperature_of,
)
from dscint_jax.explain.maps import Explained, explain
from dscint_jax.input_pipeline import HeldImages, Scintigrams
from dscint_jax.input_pipeline.records import STUDY_VIEWS, batch_of, keys_of
from dscint_jax.metrics.calibration import with_temperature
from dscint_jax.metrics.passes import predict_split
from dscint_jax.predict.familiarity import familiarity_of
from dscint_jax.run.provenance import attempts_of, classes_of
from dscint_jax.run.workdir import config_of
from tfds_builder.classes import Classes
from tfds_builder.commandline.errors import UserError
from tfds_builder.shards.records import VIEW_NAMES, Image, Record, records_of
from tfds_builder.studies.study import ReadStudy

NO_CLASSES = Classes((), ())


@dataclasses.dataclass(frozen=True)
class Said:
    """What the runs say of one study.

    Attributes:
      records: its images, or its pairs of views, as the networks see them.
      images: what each record is made of.
      raw: softmax of every record, the mean over the runs.
      probabilities: of the study: the mean over its records and the runs, each run's softmax at its
        own temperature.
      strange: what is unlike the images that the first run was trained on.
    """

    records: tuple[Record, ...]
    images: tuple[tuple[Image, ...], ...]
    raw: Float[np.ndarray, "record classes"]
    probabilities: Float[np.ndarray, " classes"]
    strange: tuple[str, ...]


class Networks:
    """Runs that were trained on the same classes, restored when the first studies come.

    Args:
      workdirs: of the runs, at least one.
      checkpoint: 'best' (by validation F-1), 'latest', or a step, of each.

    Attributes:
      classes: names, in the order of the probabilities.
      temperatures: what each run's logits are divided by, chosen on its validation images; 1 of a
        run that was not evaluated.
      uncalibrated: runs that were not.

    Raises:
      UserError: no run, no such checkpoint, or runs that do not fit together.
    """

    def __init__(self, workdirs: Sequence[Path], checkpoint: str) -> None:
        self._workdirs, self._checkpoint = workdirs, checkpoint
        self._configs = [config_of(workdir) for workdir in workdirs]
        steps = [check_checkpoint(workdir, checkpoint) for workdir in workdirs]
        self.classes = classes_of(workdirs[0])
        self.records = self._configs[0].data.records
        for workdir, config in zip(workdirs, self._configs, strict=True):
            if classes_of(workdir) != self.classes:
                raise UserError(
                    f"{workdir} was trained on {', '.join(classes_of(workdir))}, {workdirs[0]} on "
                    f"{', '.join(self.classes)}; runs of other classes cannot be averaged"
                )
            if config.data.records != self.records:
                raise UserError(
                    f"{workdir} reads {config.data.records}, {workdirs[0]} {self.records}; such "
                    f"runs cannot be averaged"
                )
        found = [temperature_of(w, step) for w, step in zip(workdirs, steps, strict=True)]
        self.temperatures = [temperature or 1.0 for temperature in found]
        self.uncalibrated = [w for w, t in zip(workdirs, found, strict=True) if t is None]
        self._restored: list[TrainedNetwork] = []
        self._familiarity = familiarity_of(workdirs[0])

    @property
    def knows_training(self) -> bool:
        """Whether images are compared with those of training."""
        return self._familiarity is not None

    @property
    def batch_size(self) -> int:
        """Records that are computed at once, of the run that takes most."""
        return max(config.batch_size for config in self._configs)

    @property
    def clip(self) -> float:
        """Upper limit of a normalised pixel that the first run sees."""
        return self._configs[0].data.clip

    @property
    def description(self) -> str:
        """The runs, and the steps of those that are restored."""
        steps = [f", step {network.step}" for network in self._restored]
        steps += [""] * (len(self._workdirs) - len(steps))
        return "; ".join(
            f"{config.model} of {workdir}{step}"
            for workdir, config, step in zip(self._workdirs, self._configs, steps, strict=True)
        )

    @property
    def identity(self) -> str:
        """The runs by what they were made from, without their places; once they are restored."""
        return "; ".join(
            f"{config.model}, seed {config.seed}, step {network.step}, data set "
            f"{attempts_of(workdir)[-1]['dataset_fingerprint'][:12]}"
            for workdir, config, network in zip(
                self._workdirs, self._configs, self._restored, strict=True
            )
        )

    def read(self, studies: Sequence[ReadStudy]) -> list[Said | None]:
        """What the runs say of some studies; None of one without an image that they read."""
        made = [list(records_of(study, self.records, True, NO_CLASSES)) for study in studies]
        records = [record for own in made for record, _ in own]
        if not records:
            return [None] * len(studies)
        raw = []
        for n, config in enumerate(self._configs):
            images = self._scintigrams(records, config.data.pool)
            if n == len(self._restored):
                self._restored.append(self._restore(n, images))
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
                    images=tuple(images for _, images in own),
                    raw=mean[place],
                    probabilities=warm[place].mean(0),
                    strange=tuple(dict.fromkeys(itertools.chain(*strange[place]))),
                )
                if own
                else None
            )
            start += len(own)
        return said

    def explain(self, studies: Sequence[Said]) -> Iterator[list[Explained]]:
        """Where the first run looks in each study's records, for the class that it reads in each.

        `read` has to come first.
        """
        records = [record for said in studies for record in said.records]
        images = self._scintigrams(records, self._configs[0].data.pool)
        network = dataclasses.replace(self._restored[0], images=images)
        explained = iter(explain(network, np.arange(len(images))))
        for said in studies:
            yield list(itertools.islice(explained, len(said.records)))

    def _strange(self, records: Sequence[Record]) -> list[list[str]]:
        """What is unlike training in each record, of those that the first run has just read."""
        if self._familiarity is None:
            return [[] for _ in records]
        spacing = [np.atleast_1d(record["pixel_spacing_mm"]) for record in records]
        known = [next(iter(values[np.isfinite(values)]), np.nan) for values in spacing]
        return self._familiarity.remarks(self._restored[0].images, np.array(known, np.float64))

    def _restore(self, number: int, images: Scintigrams) -> TrainedNetwork:
        return restore(
            self._workdirs[number],
            self._configs[number],
            images,
            checkpoint=self._checkpoint,
            trained_on=False,
        )

    def _scintigrams(self, records: Sequence[Record], pool: int) -> Scintigrams:
        """Records as the split of a data set; their classes are not known and stand as 0."""
        known = [{**record, "label": 0} for record in records]
        views = STUDY_VIEWS
        if self.records != STUDIES:
            views = VIEW_NAMES
            known = [{**record, "view": views.index(record["view"])} for record in known]
        return Scintigrams(
            split="new",
            classes=self.classes,
            class_counts=(len(records), *(0 for _ in self.classes[1:])),
            fingerprint="",
            images=HeldImages(batch_of(known, pool) | keys_of(known, views)),
            records=self.records,
        )
