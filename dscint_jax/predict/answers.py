"""What becomes of a study: what is said of it, and what has to be looked at.

In: a study as it was read, and what the networks say of it. Out: its answer, which pages, tables
and DICOM objects are made of.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dscint_jax.predict.networks import Said
from dscint_jax.predict.studies import REPEATS, FoundStudy, Sources
from dscint_jax.report.tables import plain
from tfds_builder.studies.study import ReadStudy


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is said of a study.

    Attributes:
      label: the class of the largest probability.
      confidence: that probability.
      least: the confidence below which nothing is said.
    """

    label: str
    confidence: float
    least: float

    @property
    def abstains(self) -> bool:
        """Whether nothing is said."""
        return self.confidence < self.least

    @property
    def text(self) -> str:
        """In words."""
        if self.abstains:
            return (
                f"No answer: the largest probability, {self.confidence:.2f} for "
                f"{plain(self.label)}, is below {self.least:g}."
            )
        return f"Read as {plain(self.label)}, probability {self.confidence:.2f}."


@dataclasses.dataclass(frozen=True)
class Answer:
    """What becomes of one study.

    Attributes:
      study: where it lies, and whose it is.
      said: what the networks say; None where no image of it could be read.
      verdict: what comes of it.
      remarks: what has to be looked at: findings in the images.
      notes: what was assumed or changed.
      rejected: (file, reason) of what was not read.
      sources: headers that DICOM results are made from, where they were asked for.
    """

    study: FoundStudy
    said: Said | None
    verdict: Verdict | None
    remarks: tuple[str, ...]
    notes: tuple[str, ...]
    rejected: tuple[tuple[Path, str], ...]
    sources: Sources

    @property
    def files(self) -> list[Path]:
        """Files of the images that the networks read, in the order of the study's."""
        rows = sorted(facts.row for facts in self.said.facts) if self.said else []
        return list(dict.fromkeys(self.study.files[row] for row in rows))

    def to_look_at(self, *, named: bool) -> list[str]:
        """The remarks, and what was not read; files by their names, where these may be said."""
        return [
            *self.remarks,
            *(
                f"{path.name if named else 'a file'} was not read: it {reason}"
                for path, reason in self.rejected
            ),
        ]

    def summary(self, *, named: bool) -> str:
        """What a table says beside the probabilities: why there is no answer, and `to_look_at`."""
        texts = self.to_look_at(named=named)
        if self.verdict and self.verdict.abstains:
            texts.insert(0, self.verdict.text)
        elif not self.verdict and not self.rejected:
            texts.append("no image whose view is known")
        return "; ".join(texts)

    def without_pixels(self) -> "Answer":
        """The same without images and headers, of which a thousand studies would fill the memory.

        Of its records stays what is said of them.
        """
        said = self.said and dataclasses.replace(
            self.said,
            records=tuple(
                {name: value for name, value in record.items() if np.ndim(value) < 2}
                for record in self.said.records
            ),
        )
        return dataclasses.replace(self, said=said, sources={})


def answer_of(
    study: FoundStudy,
    read: ReadStudy,
    sources: Sources,
    said: Said | None,
    classes: Sequence[str],
    least_confidence: float,
) -> Answer:
    """What becomes of a study, from how it was read and what the networks say of it."""
    findings = [
        text
        for image in read.images
        for text in (*image.facts.findings, *image.facts.quality.findings)
    ]
    notes = [text for image in read.images for text in image.facts.notes if text not in findings]
    verdict = None
    if said:
        best = int(said.probabilities.argmax())
        verdict = Verdict(classes[best], float(said.probabilities[best]), least_confidence)
    return Answer(
        study=study,
        said=said,
        verdict=verdict,
        remarks=(*(said.strange if said else ()), *dict.fromkeys(findings)),
        notes=tuple(dict.fromkeys(notes)),
        rejected=(
            *((study.files[row], reason) for row, reason in read.rejected),
            *((path, REPEATS) for path in study.repeated),
        ),
        sources=sources,
    )
