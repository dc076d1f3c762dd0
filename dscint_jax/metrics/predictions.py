"""What a network said of every image of a split, in memory and as predictions.csv.

In: probabilities and true classes, with who and what each image is of. Out: the table, the same
read back, and what it says of whole studies and patients.
"""

import csv
import dataclasses
import gzip
import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from dscint_jax.metrics.intervals import patient_confusions
from tfds_builder.commandline.errors import UserError

KEYS = ("image_id", "patient_key", "study_key")
"""Facts that every table has; those beside them are what the data set's records have."""

MIXED = "mixed"
"""What a fact is called that the images of a study, or of a patient, do not share."""

PROBABILITY = "p_"


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a network says of every image of a split.

    Attributes:
      classes: class names, in the order of the labels.
      labels: true classes.
      predicted: the class of each image's largest logit.
      probabilities: softmax, one row an image.
      facts: what each image is of, a column a fact; pseudonyms, or coarse. KEYS are among them.
    """

    classes: tuple[str, ...]
    labels: Int[np.ndarray, " image"]
    predicted: Int[np.ndarray, " image"]
    probabilities: Float[np.ndarray, "image classes"]
    facts: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def patients(self) -> np.ndarray:
        """Whom each image is of."""
        return self.facts["patient_key"]

    def confusions(self) -> Int[np.ndarray, "patient true predicted"]:
        """One confusion matrix a patient, patients in sorted order."""
        return patient_confusions(self.labels, self.predicted, self.patients, len(self.classes))

    def only(
        self, chosen: Bool[np.ndarray, " image"] | Int[np.ndarray, " chosen"]
    ) -> "Predictions":
        """Those of some images, by a mask or by their indices."""
        return dataclasses.replace(
            self,
            labels=self.labels[chosen],
            predicted=self.predicted[chosen],
            probabilities=self.probabilities[chosen],
            facts={name: values[chosen] for name, values in self.facts.items()},
        )

    def combined(self, unit: str) -> tuple["Predictions", int]:
        """What the images of each study, or of each patient, say together.

        Probabilities are averaged over them, and the class of the largest mean is predicted. A unit
        whose images have different true classes is left out.

        Args:
          unit: 'study_key' or 'patient_key'.

        Returns:
          One row a unit, in sorted order, and how many were left out.
        """
        names, index = np.unique(self.facts[unit], return_inverse=True)
        images = np.bincount(index)
        labels = np.full(len(names), -1)
        labels[index] = self.labels
        of_one_class = np.bincount(index, labels[index] != self.labels) == 0
        sums = np.zeros((len(names), len(self.classes)))
        np.add.at(sums, index, self.probabilities)
        means = sums / images[:, None]
        whole = Predictions(
            classes=self.classes,
            labels=labels,
            predicted=means.argmax(1),
            probabilities=means,
            facts={name: _shared(values, index, len(names)) for name, values in self.facts.items()},
        )
        return whole.only(of_one_class), int(np.sum(~of_one_class))


def _shared(values: np.ndarray, index: Int[np.ndarray, " image"], units: int) -> np.ndarray:
    found = np.full(units, "", dtype=object)
    found[index] = values
    found[index[found[index] != values]] = MIXED
    return found.astype(str)


def predictions_text(predictions: Predictions) -> str:
    """The content of predictions.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    classes = predictions.classes
    probabilities = (PROBABILITY + name for name in classes)
    writer.writerow([*predictions.facts, "label", "predicted", *probabilities])
    for i, probabilities in enumerate(predictions.probabilities):
        writer.writerow(
            [
                *(values[i] for values in predictions.facts.values()),
                classes[predictions.labels[i]],
                classes[predictions.predicted[i]],
                # Nine digits are a float32, so that what is computed again is the same.
                *(f"{p:.9g}" for p in probabilities),
            ]
        )
    return text.getvalue()


def read_predictions(path: Path) -> Predictions:
    """Reads predictions.csv, or, where there is none, predictions.csv.gz.

    Raises:
      UserError: there is none, or it is not as `predictions_text` writes it: names column or row.
    """
    packed = path.with_name(f"{path.name}.gz")
    try:
        if packed.exists() and not path.exists():
            content = gzip.decompress(packed.read_bytes())
        else:
            content = path.read_bytes()
        lines = list(csv.reader(io.StringIO(content.decode(), newline="")))
    except FileNotFoundError:
        raise UserError(
            f"{path} is not there; evaluate first: python -m dscint_jax.evaluate"
        ) from None
    except (UnicodeDecodeError, csv.Error, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is no CSV file: {error}") from None
    columns = lines[0] if lines else []
    facts = tuple(columns[: columns.index("label")]) if "label" in columns else ()
    classes = tuple(c.removeprefix(PROBABILITY) for c in columns if c.startswith(PROBABILITY))
    wanted = [*facts, "label", "predicted", *(PROBABILITY + name for name in classes)]
    missing = [name for name in (*KEYS, "label", "predicted") if name not in columns]
    if missing or columns != wanted or not classes:
        lack = missing[0] if missing else f"{PROBABILITY}CLASS, or has another one more"
        raise UserError(f"{path} lacks the column {lack}; evaluate again")
    if len(lines) == 1:
        raise UserError(f"{path} has no rows; evaluate again")
    return _parsed(path, lines[1:], facts, classes)


def _parsed(
    path: Path, lines: Sequence[Sequence[str]], facts: tuple[str, ...], classes: tuple[str, ...]
) -> Predictions:
    probabilities = np.zeros((len(lines), len(classes)))
    chosen = np.zeros((2, len(lines)), np.int64)
    for i, line in enumerate(lines):
        try:
            label, predicted, *cells = line[len(facts) :]
            chosen[:, i] = classes.index(label), classes.index(predicted)
            probabilities[i] = [float(cell) for cell in cells]
            if not 0.99 < probabilities[i].sum() < 1.01:
                raise ValueError("the probabilities do not add up to 1")
        except ValueError as error:
            raise UserError(f"{path}, row {i + 2}: {error}; evaluate again") from None
    return Predictions(
        classes=classes,
        labels=chosen[0],
        predicted=chosen[1],
        probabilities=probabilities,
        facts={name: np.array([line[n] for line in lines]) for n, name in enumerate(facts)},
    )
