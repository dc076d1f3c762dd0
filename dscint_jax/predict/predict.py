"""Reads studies, asks the networks, and writes tables and pages as answers come.

In: trained runs or model files, and files or folders of images. Out: studies.csv, a row a
study or a file that could not be read; predictions.csv, a row an image; pages.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from dscint_jax.explain.maps import Explained
from dscint_jax.predict.answers import Answer, answer_of
from dscint_jax.predict.dicom_results import check_writer, dicom_results
from dscint_jax.predict.networks import Networks
from dscint_jax.predict.page import index_page, study_page
from dscint_jax.predict.runs import run_of_file, run_of_workdir
from dscint_jax.predict.studies import (
    Found,
    FoundStudy,
    Sources,
    find_studies,
    read_studies,
    shown,
    worker_pool,
)
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import write_bytes, write_text
from tfds_builder.commandline.progress import ProgressBar, say
from tfds_builder.studies.study import ReadStudy
from tfds_builder.tables import csv_text

STUDIES_FILE, PREDICTIONS_FILE, INDEX_FILE = "studies.csv", "predictions.csv", "index.html"


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
                    known = (answer for answer in new if answer.said)
                    maps = networks.explain([answer.said for answer in new])
                    for answer, explained in zip(known, maps, strict=True):
                        place = out / answer.study.name
                        if pages:
                            page = study_page(
                                answer, explained, networks, deidentified=deidentified
                            )
                            write_text(place.with_suffix(".html"), page)
                        if dicom:
                            _write_results(place, answer, explained, networks, deidentified)
                answers += [answer.without_pixels() for answer in new]
                _write_tables(out, networks, found, answers, deidentified)
                bar.update(len(answers))
    index = index_page(networks, found, answers, deidentified=deidentified, pages=pages)
    write_text(out / INDEX_FILE, index)
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


def _write_tables(
    out: Path, networks: Networks, found: Found, answers: Sequence[Answer], deidentified: bool
) -> None:
    """Writes both tables, of the studies that were read so far."""
    chances = [f"p_{label}" for label in networks.classes]
    studies = [_study_row(answer, chances, deidentified) for answer in answers]
    studies += [
        {"files": shown(path), "remarks": f"not read: it {reason}"}
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
    row: dict[str, object] = {
        "study": study.name,
        "patient_id": study.patient_id,
        "study_id": study.study_id,
        "files": study.files_in_words,
        "remarks": answer.summary(named=not deidentified),
    }
    if said and verdict:
        row |= {name: f"{p:.6f}" for name, p in zip(chances, said.probabilities, strict=True)}
        row["confidence"] = f"{verdict.confidence:.6f}"
        row["predicted"] = None if verdict.abstains else verdict.label
    return row


def _image_rows(answer: Answer, networks: Networks) -> Iterator[dict[str, object]]:
    assert answer.said is not None
    for record, raw in zip(answer.said.records, answer.said.raw, strict=True):
        yield {
            "study": answer.study.name,
            "image_id": record["image_id"],
            "view": record.get("view", "both"),
            "predicted": networks.classes[int(raw.argmax())],
            # Nine digits are a float32, as in the tables of evaluation.
            **{f"p_{label}": f"{p:.9g}" for label, p in zip(networks.classes, raw, strict=True)},
        }
