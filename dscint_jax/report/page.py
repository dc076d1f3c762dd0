"""One self-contained HTML page about a run: what it reaches, on whom, how, and where it errs.

    python -m dscint_jax.report --workdir runs/quickstart/dscint

In: a work directory after `dscint_jax.evaluate`. Out: report/index.html in it, and beside it the
page's tables (tables/) and figures (figures/) as files for a paper; of another data set than the
one trained on all of these in report/NAME/.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from dscint_jax.baselines.result import Baseline
from dscint_jax.config import STUDIES
from dscint_jax.evaluate.evaluate import (
    METRICS_FILE,
    leakage_line,
    notes,
    or_elsewhere,
    result_folder,
)
from dscint_jax.evaluate.restored import TrainedNetwork
from dscint_jax.explain.lesions import lesion_records
from dscint_jax.explain.maps import explain
from dscint_jax.metrics.scores import has_published_classes
from dscint_jax.report import tables
from dscint_jax.report.checklists import checklist_tables, facts_of
from dscint_jax.report.data_flow import NOT_REPORTED, cohort_table, split_table
from dscint_jax.report.figures import drawn_figures, svg_file
from dscint_jax.report.gallery import gallery
from dscint_jax.report.html import TEMPLATE, render
from dscint_jax.report.reported import Reported, read_reported
from dscint_jax.report.tables import FORMATS, Table
from dscint_jax.run.trackers.json_lines import read_metrics
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import write_text


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
    reported = read_reported(workdir, folder, data_dir=data_dir, out=out)
    page, tabled, drawn = _made(reported)
    report = (out or workdir) / "report" / (reported.result["data_set"] or "")
    with or_elsewhere(out):
        for table in tabled:
            for ending, text in FORMATS.items():
                write_text(report / "tables" / f"{table.name}.{ending}", text(table))
        for figure, svg in drawn.items():
            write_text(report / "figures" / f"{figure}.svg", svg_file(svg))
        write_text(report / "index.html", page)
    return report / "index.html", reported.baseline


def _made(reported: Reported) -> tuple[str, list[Table], dict[str, str]]:
    """The page, its tables, and its figures as SVG by their names."""
    result, network, noun = reported.result, reported.network, reported.noun
    shown = gallery(
        reported.predictions,
        # Of the class that the page says was read.
        lambda images: explain(network, images, reported.predictions.predicted[images]),
        lesion_records(network.config, network.images),
        clip=network.config.data.clip,
    )
    explained = reported.explanations
    sections = {
        "summary": [
            tables.metrics_table(result, reported.own, reported.baseline, reported.external)
        ],
        "data": [cohort_table(reported.flow)],
        "splits": [split_table(reported.flow)],
        "groups": [tables.class_table(result, noun), tables.group_table(result, noun)],
        "confusion": [tables.confusion_table(result)],
        "curves": [tables.area_table(result)],
        "points": [tables.point_table(result, noun)],
        "calibration": [
            tables.calibration_table(result, noun),
            tables.abstention_table(result, noun),
            tables.answers_table(result),
        ],
        "explanations": []
        if explained is None or explained["not_scored"]
        else [
            tables.pointing_table(explained, noun),
            tables.pointing_group_table(explained, noun),
        ],
        "provenance": [_run_table(reported), _attempt_table(reported.attempts)],
        "checklists": checklist_tables(facts_of(reported, with_maps=bool(shown["maps"]))),
    }
    sections = {name: [table for table in made if table] for name, made in sections.items()}
    drawn = drawn_figures(result, reported.predictions, read_metrics(reported.workdir), noun)
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
        f"Linear baseline: multinomial logistic regression on the same {reported.noun} summed to "
        f"{baseline.side[0]}x{baseline.side[1]} pixels{fitted}."
    )


def _run_table(reported: Reported) -> Table:
    config, last = reported.network.config, reported.attempts[-1]
    # Only the first attempts read a file of weights.
    start = [attempt["init_from"] for attempt in reported.attempts if attempt.get("init_from")]
    rows = (
        ("data set", last["dataset_fingerprint"][:16]),
        ("commit", last["git"][:12]),
        ("devices", ", ".join(sorted(set(last["devices"])))),
        *(("initial weights", f"{f['file']}, SHA-256 {f['sha256'][:16]}") for f in start[-1:]),
        ("seed", str(config.seed)),
        ("steps", str(config.steps)),
        ("batch", f"{last.get('batch_size') or config.batch_size} {reported.noun}"),
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
