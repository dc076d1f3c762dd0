"""One self-contained HTML page about a run: its metrics, and where the network looks.

    python -m dscint_jax.report --workdir runs/quickstart/dscint

In: a work directory after `dscint_jax.evaluate`. Out: report/index.html in it, of another data set
than the one trained on report/NAME/index.html.
"""

import csv
import functools
import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dscint_jax.baselines.linear_baseline import POOL, Baseline, linear_baseline
from dscint_jax.config import STUDIES
from dscint_jax.evaluate.evaluate import (
    METRICS_FILE,
    leakage_line,
    notes,
    or_elsewhere,
    result_folder,
)
from dscint_jax.evaluate.restored import TrainedNetwork, is_trained_on, load_trained
from dscint_jax.explain.attention import Explained, explain
from dscint_jax.input_pipeline import copies_of, load_split
from dscint_jax.metrics.scores import has_published_classes, in_words
from dscint_jax.report import figures
from dscint_jax.report.tables import class_table, html_table, metrics_table
from dscint_jax.run.trackers.json_lines import read_metrics
from dscint_jax.run.workdir import config_of
from tfds_builder.commandline.command import CommandParser
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import read_json, write_text

CSS = """
:root { color-scheme: light; }
body { font: 15px/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #1d2733;
  max-width: 60rem; margin: 2.5rem auto 4rem; padding: 0 1.25rem; background: #fff; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; border-bottom: 1px solid #d9dee5; }
p, figcaption { max-width: 46rem; }
.lead { color: #4a5868; margin-top: 0; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .9rem .28rem 0; text-align: right; border-bottom: 1px solid #e8ecf0; }
th:first-child, td:first-child { text-align: left; }
thead th { font-weight: 600; border-bottom: 2px solid #1d2733; vertical-align: bottom; }
td.strong { font-weight: 700; }
figure { margin: .8rem 0; } figure img, figure svg { max-width: 100%; height: auto; }
figcaption, .note { color: #4a5868; font-size: .87rem; }
.columns { display: flex; flex-wrap: wrap; gap: 1.5rem 2.5rem; align-items: flex-start; }
code { font-size: .86rem; }
"""


def write_report(
    workdir: Path,
    *,
    split: str = "test",
    data_dir: Path | None = None,
    name: str | None = None,
    out: Path | None = None,
) -> tuple[Path, Baseline | None]:
    """Writes the page of one evaluated split.

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
    result = read_json(folder / METRICS_FILE)
    network = load_trained(workdir, split=split, checkpoint=str(result["step"]), data_dir=data_dir)
    if network.images.fingerprint != result["dataset_fingerprint"]:
        raise UserError(f"{folder / METRICS_FILE} was measured on another data set; evaluate again")
    own = None if network.trained_on else _own_test(workdir, out)
    baseline = _baseline(workdir, network)
    rows = _read_rows(folder / "predictions.csv")
    page = _page(workdir, result, own, network, baseline, rows)
    path = (out or workdir) / "report" / (result["data_set"] or "") / "index.html"
    with or_elsewhere(out):
        write_text(path, page)
    return path, baseline


def _own_test(workdir: Path, out: Path | None) -> dict[str, Any] | None:
    """The test split's result on the data set trained on, whichever split another one's is."""
    files = [place / "eval" / "test" / METRICS_FILE for place in (out, workdir) if place]
    return next((read_json(file) for file in files if file.exists()), None)


def _baseline(workdir: Path, network: TrainedNetwork) -> Baseline | None:
    """Fitted on what the network was trained on; None where that is not at hand."""
    config, elsewhere = network.config, None
    if not network.trained_on:
        config = config_of(workdir)
        try:
            if not is_trained_on(workdir, Path(config.data.dir)):
                return None
        except UserError:
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
        ranges=config.augmentation,
        elsewhere=elsewhere,
    )


def choose_examples(rows: Sequence[dict[str, str]], classes: Sequence[str]) -> list[int]:
    """Which rows of predictions.csv to show, by their indices.

    Of each class the hit of median confidence, then the two most confident errors.
    """
    sure = [float(row[f"p_{row['predicted']}"]) for row in rows]
    examples = []
    for name in classes:
        hits = [i for i, row in enumerate(rows) if row["label"] == row["predicted"] == name]
        if hits:
            examples.append(sorted(hits, key=lambda i: sure[i])[len(hits) // 2])
    errors = [i for i, row in enumerate(rows) if row["label"] != row["predicted"]]
    return examples + sorted(errors, key=lambda i: -sure[i])[:2]


def _page(
    workdir: Path,
    result: dict[str, Any],
    own: dict[str, Any] | None,
    network: TrainedNetwork,
    baseline: Baseline | None,
    rows: Sequence[dict[str, str]],
) -> str:
    classes = result["classes"]
    examples = explain(network, np.array(choose_examples(rows, classes)))
    confusion = figures.confusion_figure(np.array(result["confusion_matrix"]), classes)
    scintigrams = figures.scintigram_figure(examples, classes)
    name = html.escape(network.config.model)
    noun = network.images.noun
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name} on whole-body bone scintigrams</title><style>{CSS}</style></head><body>
<h1>{name} on whole-body bone scintigrams</h1>
<p class="lead">{_lead(result, network)}</p>
<p>{html.escape(leakage_line(result), quote=False)}</p>

<h2>The five metrics</h2>
{metrics_table(result, own, baseline)}
<p class="note">Accuracy is overall; the others are means of one-vs-rest values over the classes
that the {noun} have. Intervals: {html.escape(result["intervals"]["method"])}.
{_baseline_note(noun, result, baseline)}
{_published_note(result)}
{html.escape(" ".join(notes(result)), quote=False)}</p>

<h2>By class</h2>
<div class="columns"><figure>{figures.as_svg(confusion)}
<figcaption>{noun.capitalize()} by true and predicted class; shares of the true class.</figcaption>
</figure>
<div>{class_table(result, noun)}</div></div>

<h2>Learning curves</h2>
<figure>{figures.as_svg(figures.learning_figure(read_metrics(workdir), result["step"]))}
<figcaption>Training loss is weighted by class and smoothed as configured, on augmented {noun};
validation loss is plain cross-entropy.</figcaption></figure>

<h2>Where the network looks</h2>
<figure>{figures.as_png(scintigrams, "scintigrams beside their attention maps")}
<figcaption>Of each class the hit of median confidence, then the most confident errors.
{_attention_caption(examples)} p: softmax of the predicted class.</figcaption></figure>

<h2>How it was made</h2>
{_provenance(workdir, network)}
</body></html>
"""


def _lead(result: dict[str, Any], network: TrainedNetwork) -> str:
    patients = result["intervals"]["patients"]
    height, width = network.images.read(np.array([0]))["counts"].shape[-3:-1]
    noun = network.images.noun
    noun = f"copies of {noun}" if network.images.copies else noun
    each = "views" if network.images.records == STUDIES else noun
    data_set = f" of {html.escape(result['data_set'])}" if result["data_set"] else ""
    return (
        f"{result['support']} {noun} of {patients} patients, the {html.escape(result['split'])} "
        f"split{data_set}; {each} of {height}x{width} pixels; {network.parameters:,} parameters; "
        f"checkpoint of step {result['step']}."
    )


def _attention_caption(examples: Sequence[Explained]) -> str:
    pairs = len(examples[0].views) > 1
    counts = "square root of counts, dark is many"
    if examples[0].attention is None:
        sides = "; anterior view left, posterior view right" if pairs else ""
        return f"{counts.capitalize()}{sides}."
    if pairs:
        return (
            f"Left: {counts}; anterior, posterior. Right: the same under the attention, whose "
            "shares sum to 1 over both views; each study is stretched to its own range, and bright "
            "is more weight. A missing view stays empty and has no share."
        )
    return (
        f"Left: {counts}. Right: the same under the spatial attention gate, each map stretched to "
        "its own range; bright is more weight. The gate multiplies features: where the image is "
        "empty, it weighs nothing."
    )


def _baseline_note(noun: str, result: dict[str, Any], baseline: Baseline | None) -> str:
    if baseline is None:
        return "No linear baseline: the data set trained on is not where the config says."
    fitted = ", fitted on the data set trained on" if result["data_set"] else ""
    return (
        f"Linear baseline: multinomial logistic regression on the same {noun} summed to "
        f"{baseline.side[0]}x{baseline.side[1]} pixels{fitted}."
    )


def _published_note(result: dict[str, Any]) -> str:
    if not has_published_classes(result):
        return ""
    return (
        "The published figures (Lin et al., Med Phys 2021;48:5782) were measured on a private "
        "clinical data set that was augmented before it was split; they stand here for "
        "orientation, not as a comparison."
    )


def _initial_weights(attempts: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """The file that the run started from, if any; only its first attempts read it."""
    files = [attempt["init_from"] for attempt in attempts if attempt.get("init_from")]
    if not files:
        return []
    name, digest = html.escape(files[-1]["file"]), html.escape(files[-1]["sha256"][:16])
    return [("initial weights", f"{name}, SHA-256 <code>{digest}</code>")]


def _provenance(workdir: Path, network: TrainedNetwork) -> str:
    attempts = read_json(workdir / "provenance.json")
    last = attempts[-1]
    facts = [
        ("data set", f"<code>{html.escape(last['dataset_fingerprint'][:16])}</code>"),
        ("commit", f"<code>{html.escape(last['git'][:12])}</code>"),
        ("devices", html.escape(", ".join(sorted(set(last["devices"]))))),
        ("attempts", str(len(attempts))),
        *_initial_weights(attempts),
        ("seed", str(network.config.seed)),
        (
            "steps, batch",
            f"{network.config.steps}, {last.get('batch_size') or network.config.batch_size} "
            f"{network.images.noun}",
        ),
        *((html.escape(p), html.escape(v)) for p, v in last["versions"].items()),
    ]
    return html_table(("", ""), facts) + (
        '<p class="note">The whole config is in config.json, every attempt in provenance.json, '
        "every prediction in predictions.csv, in the same work directory.</p>"
    )


def _read_rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; evaluate again") from None


def main() -> None:
    """The command line."""
    parser = CommandParser(
        prog="python -m dscint_jax.report",
        description="Write one self-contained HTML page about an evaluated run.",
    )
    parser.add_argument("--workdir", type=Path, required=True, help="directory of the training")
    parser.add_argument("--split", default="test", help="which evaluation (default: test)")
    parser.add_argument("--data_dir", type=Path, help="data set, if not the one the config names")
    parser.add_argument(
        "--name", help="of another data set than the one trained on (default: its folder's)"
    )
    parser.add_argument("--out", type=Path, help="folder of report/, if not the work directory")
    arguments = parser.parse_args()
    path, baseline = write_report(**vars(arguments))
    if baseline:
        print(
            f"linear baseline ({baseline.side[0]}x{baseline.side[1]} logistic regression): "
            f"accuracy {in_words(baseline.scores['accuracy'])}, "
            f"F-1 {in_words(baseline.scores['f1'])}"
        )
    print(f"report: {path}")
