"""Reads studies, asks the networks, and writes tables and pages as answers come.

In: trained runs or model files, and files or folders of images. Out: studies.csv, a row a
study or a file that could not be read; predictions.csv, a row an image; pages.
"""

import dataclasses
import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pydicom
from pydicom.config import RAISE
from pydicom.datadict import dictionary_VM
from pydicom.dataelem import DataElement

from dscint_jax.explain.maps import Explained
from dscint_jax.predict.dicom_results import (
    NAME,
    VERSION,
    capture,
    check_writer,
    picture_of,
    report,
    without_identity,
)
from dscint_jax.predict.networks import Networks, Said
from dscint_jax.predict.page import TEMPLATE, Verdict, study_page
from dscint_jax.predict.runs import run_of_file, run_of_workdir
from dscint_jax.predict.studies import (
    REPEATS,
    Found,
    FoundStudy,
    Sources,
    find_studies,
    name_of,
    read_studies,
    worker_pool,
)
from dscint_jax.report.html import render
from dscint_jax.report.tables import plain
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import write_bytes, write_text
from tfds_builder.commandline.progress import ProgressBar, say
from tfds_builder.scan.path_names import printable
from tfds_builder.studies.study import ReadStudy
from tfds_builder.tables import csv_text

STUDIES_FILE, PREDICTIONS_FILE, INDEX_FILE = "studies.csv", "predictions.csv", "index.html"


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
        images = itertools.chain(*(self.said.images if self.said else ()))
        rows = sorted(image.facts.row for image in images)
        return list(dict.fromkeys(self.study.files[row] for row in rows))

    def without_pixels(self) -> "Answer":
        """The same without images and headers, of which a thousand studies would fill the memory.

        Of its records stays what is said of them.
        """
        if not self.said:
            return dataclasses.replace(self, sources={})
        said = dataclasses.replace(
            self.said,
            records=tuple(
                {name: value for name, value in record.items() if np.ndim(value) < 2}
                for record in self.said.records
            ),
            images=tuple(
                tuple(
                    dataclasses.replace(image, counts=image.counts[:0].copy(), lesion_mask=None)
                    for image in images
                )
                for images in self.said.images
            ),
        )
        return dataclasses.replace(self, said=said, sources={})


def predict(
    workdirs: Sequence[Path],
    inputs: Sequence[Path],
    out: Path,
    *,
    models: Sequence[Path] = (),
    checkpoint: str = "best",
    least_confidence: float = 0.0,
    least_accuracy: float | None = None,
    accept: bool = False,
    deidentified: bool = False,
    pages: bool = True,
    dicom: bool = False,
    workers: int = 1,
    fetch: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """Predicts the class of every study in files and folders.

    Args:
      workdirs: of trained runs; of several, and of models, probabilities are averaged.
      inputs: image files, or folders of them.
      out: folder to write, new or empty.
      models: .safetensors files that `dscint_jax.export` wrote.
      checkpoint: 'best' (by validation F-1), 'latest', or a step, of each work directory.
      least_confidence: the probability of the predicted class below which nothing is said.
      least_accuracy: of answers; in place of `least_confidence`, that which evaluation chose for it
        on validation studies is taken.
      accept: whether files are taken that only a rule of thumb is against.
      deidentified: whether patients, studies and files are left out of what is written.
      pages: whether a page a study is written.
      dicom: whether a report and a picture are written as DICOM objects, of studies that are DICOM.
      workers: processes that open files.
      fetch: what puts files into `inputs`, once all else is known to be right.

    Returns:
      What became of each study, in order; without the pixels.

    Raises:
      UserError: no run, runs that do not fit together, no image, or an `out` that holds files.
    """
    check_confidence(least_confidence)
    if dicom:
        check_writer()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is not empty; give a new folder")
    for place in inputs:
        if not place.exists():
            raise UserError(f"{place}: no such file or folder")
    networks = open_networks(workdirs, checkpoint, models)
    if least_accuracy is not None:
        least_confidence = networks.least_confidence(least_accuracy)
        say(f"no answer is given below a probability of {least_confidence:.3f}")
    fetch()
    answers: list[Answer] = []
    with worker_pool(workers) as pool:
        with ProgressBar("looking at files", noun="files"):
            found = find_studies(inputs, pool, accept=accept)
        _write_tables(out, networks, found, answers, deidentified)
        say(f"{len(found.studies)} studies found; the first one waits for a compilation")
        with ProgressBar("studies", total=len(found.studies), noun="studies") as bar:
            read = read_studies(found.studies, pool, sources=dicom)
            for group in _groups(read, networks.batch_size):
                said = networks.read([own for _, own, _ in group])
                new = [
                    answer_of(*own, one, networks.classes, least_confidence)
                    for own, one in zip(group, said, strict=True)
                ]
                if pages or dicom:
                    for answer, explained in explained_of(new, networks):
                        place = out / name_of(answer.study)
                        if pages:
                            page = _page(answer, explained, networks, deidentified)
                            write_text(place.with_suffix(".html"), page)
                        if dicom:
                            _write_results(place, answer, explained, networks, deidentified)
                answers += [answer.without_pixels() for answer in new]
                _write_tables(out, networks, found, answers, deidentified)
                bar.update(len(answers))
    write_text(out / INDEX_FILE, _index(networks, found, answers, deidentified, pages))
    return answers


def check_confidence(least: float) -> None:
    """Raises UserError where it is no probability."""
    if not 0 <= least <= 1:
        raise UserError(f"--least_confidence {least} is no probability; give 0 to 1")


def open_networks(
    workdirs: Sequence[Path], checkpoint: str, models: Sequence[Path] = ()
) -> Networks:
    """Opens runs and model files, and says what they lack; raises as `Networks`."""
    runs = [run_of_workdir(workdir, checkpoint) for workdir in workdirs]
    networks = Networks([*runs, *map(run_of_file, models)])
    for run in networks.uncalibrated:
        say(
            f"note: this checkpoint of {run.place} was not evaluated: its probabilities are not "
            f"calibrated; first: {run.remedy}"
        )
    if not networks.knows_training:
        why = (
            f"the data set is not where {workdirs[0] / 'config.json'} says"
            if workdirs
            else "a model file does not hold them"
        )
        say(f"note: images are not compared with those of training, as {why}")
    return networks


def _groups(
    studies: Iterator[tuple[FoundStudy, ReadStudy, Sources]], size: int
) -> Iterator[list[tuple[FoundStudy, ReadStudy, Sources]]]:
    """The first study alone, for an early answer; then as many as fill a batch."""
    group: list[tuple[FoundStudy, ReadStudy, Sources]] = []
    for study, read, sources in studies:
        group.append((study, read, sources))
        images = sum(len(own.images) for _, own, _ in group)
        if study.number == 1 or images >= size:
            yield group
            group = []
    if group:
        yield group


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


def explained_of(
    answers: Sequence[Answer], networks: Networks
) -> Iterator[tuple[Answer, list[Explained]]]:
    """Every study that was read, with its maps."""
    if read := [answer for answer in answers if answer.said]:
        maps = networks.explain([answer.said for answer in read if answer.said])
        yield from zip(read, maps, strict=True)


def _write_results(
    place: Path,
    answer: Answer,
    explained: Sequence[Explained],
    networks: Networks,
    deidentified: bool,
) -> None:
    try:
        results = dicom_results(answer, explained, networks, deidentified=deidentified)
    except UserError as error:
        say(f"note: {place.name} has no DICOM results: it {error}")
        return
    for kind, content in results.items():
        write_bytes(place.with_name(f"{place.name}_{kind}.dcm"), content)


def dicom_results(
    answer: Answer,
    explained: Sequence[Explained],
    networks: Networks,
    *,
    deidentified: bool = False,
) -> dict[str, bytes]:
    """The report and the picture of a study, as DICOM files; none of one that is no DICOM study.

    Raises:
      UserError: its header lacks what they need, or holds what no object made anew may have.
    """
    said, verdict = answer.said, answer.verdict
    assert said
    assert verdict
    if isinstance(answer.sources, UserError):
        raise answer.sources
    files = answer.files
    if not all(path in answer.sources for path in files):
        return {}
    sources = [answer.sources[path] for path in files]
    frames = [
        (files.index(answer.study.files[image.facts.row]), image.facts.frame)
        for images in said.images
        for image in images
    ]
    if deidentified:
        sources, frames = [without_identity(sources)], []
    network = f"{networks.identity}; least confidence {verdict.least}; {NAME} {VERSION}"
    # Names of files say nothing where the objects go.
    remarks = [*answer.remarks, *_rejected(answer, True)]
    pixels = picture_of(said, explained, verdict, remarks)
    try:
        made = report(
            sources, frames, said.probabilities, verdict, networks.classes, network, remarks
        )
        picture = capture(sources, pixels, network)
        return {"report": _part_10(made), "picture": _part_10(picture)}
    except (AttributeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"has a header that does not allow them: {reason}") from error


def _part_10(dataset: pydicom.Dataset) -> bytes:
    """A DICOM object as a file; ValueError names the element whose value is none of its type."""
    for element in dataset:
        try:
            DataElement(element.tag, element.VR, element.value, validation_mode=RAISE)
        except ValueError:
            raise ValueError(f"{element.keyword} has a value that is none of its type") from None
        if element.VM > 1 and dictionary_VM(element.tag) == "1":
            raise ValueError(f"{element.keyword} has several values")
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    return content.getvalue()


def _page(
    answer: Answer, explained: Sequence[Explained], networks: Networks, deidentified: bool
) -> str:
    said, verdict = answer.said, answer.verdict
    assert said
    assert verdict
    facts = {} if deidentified else _identity(answer.study)
    facts |= {
        "views": "; ".join(
            f"{image.facts.view} by {image.facts.view_rule}"
            for images in said.images
            for image in images
        ),
        "counts": ", ".join(
            f"{image.facts.quality.total:,}" for images in said.images for image in images
        ),
        "notes": "; ".join(answer.notes) or "none",
        "networks": networks.description,
        "compared with the images of training": "yes" if networks.knows_training else "no",
    }
    return study_page(
        name_of(answer.study).replace("_", " ").capitalize(),
        said,
        verdict,
        networks.classes,
        explained,
        clip=networks.clip,
        calibrated=not networks.uncalibrated,
        remarks=[*answer.remarks, *_rejected(answer, deidentified)],
        facts=facts,
    )


def _shown(path: Path) -> str:
    return printable(PurePosixPath(path))


def _rejected(answer: Answer, deidentified: bool) -> list[str]:
    """What files of a study could not be read."""
    return [
        f"{'a file' if deidentified else path.name} was not read: it {reason}"
        for path, reason in answer.rejected
    ]


def _identity(study: FoundStudy) -> dict[str, str]:
    return {
        "patient": study.patient_id,
        "study UID or name": study.study_id,
        "files": "; ".join(dict.fromkeys(map(_shown, study.files))),
    }


def _write_tables(
    out: Path, networks: Networks, found: Found, answers: Sequence[Answer], deidentified: bool
) -> None:
    """Writes both tables, of the studies that were read so far."""
    chances = [f"p_{label}" for label in networks.classes]
    studies = [_study_row(answer, chances, deidentified) for answer in answers]
    studies += [
        {"files": _shown(path), "remarks": f"not read: it {reason}"}
        for path, reason in sorted(found.unread.items())
    ]
    columns = ["study", "patient_id", "study_id", "files", "predicted", "confidence", *chances]
    if deidentified:
        columns = [name for name in columns if name not in ("patient_id", "study_id", "files")]
    _write_table(out / STUDIES_FILE, [*columns, "remarks"], studies)
    images = [row for answer in answers if answer.said for row in _image_rows(answer, networks)]
    columns = ["study", "image_id", "view", "predicted", *chances]
    _write_table(out / PREDICTIONS_FILE, columns, images)


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    write_text(path, csv_text(columns, ([row.get(name) for name in columns] for row in rows)))


def _study_row(answer: Answer, chances: Sequence[str], deidentified: bool) -> dict[str, object]:
    study, said, verdict = answer.study, answer.said, answer.verdict
    rejected = _rejected(answer, deidentified)
    row: dict[str, object] = {
        "study": name_of(study),
        "patient_id": study.patient_id,
        "study_id": study.study_id,
        "files": _identity(study)["files"],
    }
    remarks = [*answer.remarks, *rejected]
    if said and verdict:
        row |= {name: f"{p:.6f}" for name, p in zip(chances, said.probabilities, strict=True)}
        row["confidence"] = f"{verdict.confidence:.6f}"
        row["predicted"] = None if verdict.abstains else verdict.label
        if verdict.abstains:
            remarks.insert(0, verdict.text)
    elif not rejected:
        remarks.append("no image whose view is known")
    return row | {"remarks": "; ".join(remarks)}


def _image_rows(answer: Answer, networks: Networks) -> Iterator[dict[str, object]]:
    assert answer.said is not None
    for record, raw in zip(answer.said.records, answer.said.raw, strict=True):
        yield {
            "study": name_of(answer.study),
            "image_id": record["image_id"],
            "view": record.get("view", "both"),
            "predicted": networks.classes[int(raw.argmax())],
            # Nine digits are a float32, as in the tables of evaluation.
            **{f"p_{label}": f"{p:.9g}" for label, p in zip(networks.classes, raw, strict=True)},
        }


def _index(
    networks: Networks, found: Found, answers: Sequence[Answer], deidentified: bool, pages: bool
) -> str:
    chances = [f"p_{label}" for label in networks.classes]
    rows = [
        {
            "name": name_of(answer.study).replace("_", " "),
            "page": f"{name_of(answer.study)}.html" if pages and answer.said else None,
            "cells": [
                *([] if deidentified else [answer.study.patient_id]),
                "no answer"
                if answer.verdict is None or answer.verdict.abstains
                else plain(answer.verdict.label),
                f"{answer.verdict.confidence:.2f}" if answer.verdict else "",
                _study_row(answer, chances, deidentified)["remarks"],
            ],
        }
        for answer in answers
    ]
    head = ["study", *([] if deidentified else ["patient"]), "read as", "probability", "remarks"]
    unread = [
        ("a file" if deidentified else _shown(path), f"it {reason}")
        for path, reason in sorted(found.unread.items())
    ]
    lead = f"{len(answers)} studies, read by {networks.description}."
    index = TEMPLATE / "index.html"
    return render(index, scripts=(), lead=lead, head=head, rows=rows, unread=unread)
