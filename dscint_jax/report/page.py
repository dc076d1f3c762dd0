"""One self-contained HTML page about a run: what it reaches, on whom, how, and where it errs.

    python -m dscint_jax.report --workdir runs/quickstart/dscint

In: a work directory after `dscint_jax.evaluate`. Out: report/index.html in it, and beside it the
page's tables (tables/) and figures (figures/) as files for a paper; of another data set than the
one trained on all of these in report/NAME/.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from dscint_jax.baselines.linear_baseline import POOL, linear_baseline
from dscint_jax.baselines.result import Baseline
from dscint_jax.config import STUDIES
from dscint_jax.evaluate.evaluate import (
    METRICS_FILE,
    PREDICTIONS_FILE,
    leakage_line,
    notes,
    or_elsewhere,
    result_folder,
)
from dscint_jax.evaluate.restored import TrainedNetwork, config_at_hand, load_trained
from dscint_jax.explain.explanations import EXPLANATIONS_FILE
from dscint_jax.explain.lesions import lesion_records
from dscint_jax.explain.maps import explain
from dscint_jax.input_pipeline import copies_of, load_split, open_dataset, sample_of
from dscint_jax.metrics.predictions import Predictions, read_predictions
from dscint_jax.metrics.scores import has_published_classes
from dscint_jax.report import figures, tables
from dscint_jax.report.checklists import checklist_tables, facts_of
from dscint_jax.report.data_flow import (
    NOT_REPORTED,
    DataFlow,
    cohort_table,
    read_data_flow,
    split_table,
)
from dscint_jax.report.gallery import gallery
from dscint_jax.report.html import TEMPLATE, render
from dscint_jax.report.tables import FORMATS, Table
from dscint_jax.run.checkpoint import complete_steps
from dscint_jax.run.provenance import attempts_of
from dscint_jax.run.trackers.json_lines import read_metrics
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import read_json, write_text

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


def write_report(
    workdir: Path,
    *,
    split: str = "test",
    data_dir: Path | None = None,
    name: str | None = None,
    out: Path | None = None,
) -> tuple[Path, Baseline | None]:
    """Writes the page of one evaluated split, and its tables and figures beside it.

    Args:
      workdir: of the training, evaluated.
      split: which evaluation.
      data_dir: another place of the data set than the config names, or another data set.
      name: of another data set than the one trained on; None: that of its folder.
      out: folder of report/, for a work directory that may not be written; an evaluation there
        comes before the work directory's.

    Returns:
      The page, and the linear baseline on it; None of another data set where the one trained on is
      not at hand, because it is fitted on that.

    Raises:
      UserError: the split was not evaluated, or the run or its data cannot be read.
    """
    place = functools.partial(result_folder, workdir, split, data_dir=data_dir, name=name)
    folder = place(out=out)
    if out and not folder.is_dir():
        folder = place()
    if not (folder / METRICS_FILE).exists():
        options = "".join(
            f" --{option} {value}"
            for option, value in (("data_dir", data_dir), ("name", name), ("out", out))
            if value is not None
        )
        raise UserError(
            f"{folder} holds no {METRICS_FILE}; evaluate first: python -m dscint_jax.evaluate "
            f"--workdir {workdir} --split {split}{options}"
        )
    reported = _read(workdir, folder, data_dir, out)
    page, tabled, drawn = _made(reported)
    report = (out or workdir) / "report" / (reported.result["data_set"] or "")
    with or_elsewhere(out):
        for table in tabled:
            for ending, text in FORMATS.items():
                write_text(report / "tables" / f"{table.name}.{ending}", text(table))
        for figure, svg in drawn.items():
            write_text(report / "figures" / f"{figure}.svg", figures.svg_file(svg))
        write_text(report / "index.html", page)
    return report / "index.html", reported.baseline


def _read(workdir: Path, folder: Path, data_dir: Path | None, out: Path | None) -> Reported:
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
    found = {}
    for place in (workdir, out):
        if place:
            for file in sorted((place / "eval").glob(f"*/{split}/{METRICS_FILE}")):
                found[file.parent.parent.name] = read_json(file)
    return dict(sorted(found.items()))


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


def _made(reported: Reported) -> tuple[str, list[Table], dict[str, str]]:
    """The page, its tables, and its figures as SVG by their names."""
    result, network, noun = reported.result, reported.network, reported.network.images.noun
    shown = gallery(
        reported.predictions,
        functools.partial(explain, network),
        lesion_records(network.config, network.images),
        clip=network.config.data.clip,
    )
    explained = reported.explanations
    facts = facts_of(
        result,
        network,
        reported.baseline,
        reported.flow,
        reported.attempts,
        reported.external,
        explained=bool(shown["maps"]),
    )
    sections = {
        "summary": [
            tables.metrics_table(result, reported.own, reported.baseline, reported.external)
        ],
        "data": [cohort_table(reported.flow)],
        "splits": [split_table(reported.flow)],
        "groups": [tables.class_table(result, noun), tables.group_table(result, noun)],
        "confusion": [tables.confusion_table(result)],
        "curves": [tables.area_table(result)],
        "points": [table for table in [tables.point_table(result, noun)] if table],
        "calibration": [
            tables.calibration_table(result, noun),
            tables.abstention_table(result, noun),
            *(table for table in [tables.answers_table(result)] if table),
        ],
        "explanations": []
        if explained is None or explained["not_scored"]
        else [
            tables.pointing_table(explained, noun),
            tables.pointing_group_table(explained, noun),
        ],
        "provenance": [_run_table(reported), _attempt_table(reported.attempts)],
        "checklists": checklist_tables(facts),
    }
    drawn = {
        name: figures.as_svg(figure, name, alternative)
        for name, (figure, alternative) in _figures(reported).items()
    }
    page = render(
        TEMPLATE / "page.html",
        scripts=("viewer", "page"),
        model=network.config.model,
        lead=_lead(reported),
        leakage=leakage_line(result),
        notes=notes(result),
        intervals=result["intervals"]["method"],
        baseline_note=_baseline_note(reported),
        published=has_published_classes(result),
        noun=noun,
        flow=reported.flow,
        sections=sections,
        figures={name: Markup(svg) for name, svg in drawn.items()},
        gallery=shown,
        attention_note=_attention_note(shown, network),
        not_scored=_not_scored(reported),
        not_reported=NOT_REPORTED,
    )
    return page, [table for section in sections.values() for table in section], drawn


def _figures(reported: Reported) -> dict[str, tuple[Figure, str]]:
    """Every figure, and what it shows in words."""
    result, predictions = reported.result, reported.predictions
    noun, lines = reported.network.images.noun, read_metrics(reported.workdir)
    confusion = np.array(result["confusion_matrix"])
    return {
        "confusion": (
            figures.confusion_figure(confusion, result["classes"]),
            "confusion matrix, counts and shares of the true class",
        ),
        "roc": (
            figures.roc_figure(predictions, result["operating_points"]),
            "ROC curve of each class against all others",
        ),
        "precision_recall": (
            figures.precision_recall_figure(predictions),
            "precision-recall curve of each class against all others",
        ),
        "reliability": (
            figures.reliability_figure(result["calibration"]),
            "accuracy against confidence, before and after temperature",
        ),
        "abstention": (
            figures.abstention_figure(predictions, noun),
            "accuracy against the share that is read",
        ),
        **{
            f"learning_{name}": (
                figures.learning_figure(lines, name, result["step"]),
                f"{name} of training and validation by step",
            )
            for name in ("loss", "accuracy")
        },
    }


def _lead(reported: Reported) -> str:
    result, images = reported.result, reported.network.images
    patients = result["intervals"]["patients"]
    height, width = images.read(np.array([0]))["counts"].shape[-3:-1]
    noun = f"copies of {images.noun}" if images.copies else images.noun
    each = "views" if images.records == STUDIES else noun
    data_set = f" of {result['data_set']}" if result["data_set"] else ""
    mirrored = " Probabilities are means over each image and its mirror image."
    return (
        f"{result['support']} {noun} of {patients} patients, the {result['split']} "
        f"split{data_set}; {each} of {height}x{width} pixels; "
        f"{reported.network.parameters:,} parameters; checkpoint of step {result['step']}."
        f"{mirrored * bool(result['test_time_augmentation'])}"
    )


def _not_scored(reported: Reported) -> str:
    """Why the page has no scores of maps."""
    found, result = reported.explanations, reported.result
    if found is not None:
        return f"Not scored: {found['not_scored']}."
    data_set = ""
    if result["data_set"]:
        folder = reported.network.config.data.dir
        data_set = f" --data_dir {folder} --name {result['data_set']}"
    return (
        f"Not measured: python -m dscint_jax.explain --workdir {reported.workdir}{data_set} "
        f"--split {result['split']} --checkpoint {result['step']}, before the report, does so."
    )


def _attention_note(shown: Mapping[str, Any], network: TrainedNetwork) -> str:
    if "attention" not in shown["maps"]:
        return ""
    if network.images.records == STUDIES:
        return (
            "Attention: its shares sum to 1 over both views; each study is stretched to its own "
            "range, and bright is more weight. A missing view stays empty and has no share."
        )
    return (
        "Attention: the spatial attention gate, each map stretched to its own range; bright is "
        "more weight. The gate multiplies features: where the image is empty, it weighs nothing."
    )


def _baseline_note(reported: Reported) -> str:
    baseline = reported.baseline
    if baseline is None:
        return "No linear baseline: the data set trained on is not where the config says."
    fitted = ", fitted on the data set trained on" if reported.result["data_set"] else ""
    return (
        f"Linear baseline: multinomial logistic regression on the same "
        f"{reported.network.images.noun} summed to {baseline.side[0]}x{baseline.side[1]} "
        f"pixels{fitted}."
    )


def _run_table(reported: Reported) -> Table:
    config, last = reported.network.config, reported.attempts[-1]
    noun = reported.network.images.noun
    # Only the first attempts read a file of weights.
    start = [attempt["init_from"] for attempt in reported.attempts if attempt.get("init_from")]
    rows = (
        ("data set", last["dataset_fingerprint"][:16]),
        ("commit", last["git"][:12]),
        ("devices", ", ".join(sorted(set(last["devices"])))),
        *(("initial weights", f"{f['file']}, SHA-256 {f['sha256'][:16]}") for f in start[-1:]),
        ("seed", str(config.seed)),
        ("steps", str(config.steps)),
        ("batch", f"{last.get('batch_size') or config.batch_size} {noun}"),
        ("Python", last.get("python", NOT_REPORTED)),
        ("platform", last.get("platform", NOT_REPORTED)),
        *last["versions"].items(),
    )
    note = "The whole config is in config.json, every prediction in predictions.csv."
    return Table("run", "The run as its newest attempt records it", ("what", "value"), rows, note)


def _attempt_table(attempts: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for number, attempt in enumerate(attempts, 1):
        ended = attempt.get("ended") or {}
        devices = ", ".join(sorted(set(attempt["devices"])))
        rows.append(
            (
                str(number),
                attempt.get("started", NOT_REPORTED),
                str(attempt.get("start_step", NOT_REPORTED)),
                f"{len(attempt['devices'])} x {devices}",
                ended.get("why", NOT_REPORTED),
                str(ended.get("step", NOT_REPORTED)),
            )
        )
    head = ("attempt", "started", "after step", "devices", "how it ended", "at step")
    return Table("attempts", "Attempts at the run", head, tuple(rows))
