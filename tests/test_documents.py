"""What the documents tell a reader to type: every block of commands runs, in order, in one folder.

A block of commands is fenced as ```bash; ```text is output, tables and files, ```python is Python.
Blocks run as they stand but for `SMALLER`, and for commands that an earlier document has run with
the same arguments. What cannot run here stands behind a comment `<!-- parsed only: WHY -->`: its
options are compared with the command's --help. Links, headings, files and names are checked too.
"""

import ast
import csv
import functools
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from dscint_jax.config import FIELDS
from tfds_builder.studies.quality import FINDINGS

PROJECT = Path(__file__).parent.parent
SHELVES = (
    "docs/getting_started",
    "docs/how_to",
    "docs/reference",
    "docs/explanation",
    "docs",
)
"""Folders of documents, in the order in which their commands run; README.md comes before them."""

DOCUMENTS = (
    "README.md",
    *(
        str(path.relative_to(PROJECT))
        for shelf in SHELVES
        for path in sorted((PROJECT / shelf).glob("*.md"))
    ),
    "CONTRIBUTING.md",
    "tfds_builder/scintigraphy/README.md",
)

MOST_LINES_OF_README = 150

SMALLER = (
    # A cohort that is made in seconds.
    (r"--patients \d+", "--patients 24"),
    (r"PATIENTS=\d+", "PATIENTS=24"),
    # Three of Dscint's layers.
    (
        r"(--config configs/quickstart\.py)(?!:)",
        r"\1 '--config.model_options.widths=(8, 8, 16)' '--config.model_options.strides=(2, 1, 1)'"
        r" '--config.model_options.pool_after=(2,)' --config.model_options.attention_after=2"
        r" --config.model_options.hidden=8",
    ),
    # Two steps on eight images of 128x32 pixels, whatever the config.
    (
        r"(--config configs/\w+\.py(?::\w+)?)",
        r"\1 --config.steps=2 --config.evaluate_every=2 --config.optimizer.warmup_steps=1"
        r" --config.data.pool=8 --config.batch_size=8",
    ),
    (r"(-m dscint_jax\.baselines)", r"\1 --steps 2"),
    # Random weights in place of a file that would have to be downloaded.
    (r" --config\.init_from=\S+\.pth", ""),
    # The tests would start themselves.
    (r"\./run\.sh test\b", "./run.sh test --help"),
    (r"\./run\.sh slurm", "./run.sh slurm --dry-run"),
)
"""What is replaced before a block, or run.sh, is run."""

FENCE = re.compile(
    r"(?:^<!-- parsed only: (?P<why>[^\n]+) -->\n+)?"
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A fenced block; `output` is the one that stands directly behind, empty where none does."""

    document: str
    line: int
    language: str
    why_parsed_only: str
    text: str
    output: str

    def __str__(self):
        return f"{self.document}:{self.line}"


def _blocks(document):
    source = (PROJECT / document).read_text()
    matches = list(FENCE.finditer(source))
    for match, following in itertools.zip_longest(matches, matches[1:]):
        line = source.count("\n", 0, match.start("language")) + 1
        directly = following and not source[match.end() : following.start()].strip()
        output = following["text"] if directly and following["language"] == "text" else ""
        text = re.sub(f"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        yield Block(document, line, match["language"], match["why"] or "", text, output)


def _lines(text):
    """The commands of a block, one a line, without those that are only a comment."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if shlex.split(line, comments=True):
            yield line


def _words(line):
    return tuple(shlex.split(line, comments=True))


def _without_repeats(blocks):
    """The blocks with the commands that no block before them has; none that would be empty."""
    seen = set()
    for block in blocks:
        new = [line for line in _lines(block.text) if _words(line) not in seen]
        seen.update(map(_words, new))
        if new:
            yield block._replace(text="\n".join(new))


BLOCKS = [block for document in DOCUMENTS for block in _blocks(document)]
COMMANDS = [block for block in BLOCKS if block.language == "bash"]
NOT_PARSED_ONLY = [block for block in COMMANDS if not block.why_parsed_only]
RUN = list(_without_repeats(NOT_PARSED_ONLY))

AT_NIGHT = (
    *("docs/how_to/both_views.md", "docs/how_to/external_evaluation.md"),
    *("docs/how_to/pytorch_weights.md", "docs/reference/networks.md"),
    "docs/explanation/phantom.md",
)
"""Documents whose commands take up to a minute each and leave nothing that others need."""


def _spans(document):
    """What stands between single backticks in the sentences of a document."""
    prose = FENCE.sub("", (PROJECT / document).read_text())
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


INLINE = sorted(
    {
        span
        for document in DOCUMENTS
        for span in _spans(document)
        if span.startswith(("python -m", "./run.sh"))
    }
)
"""Commands within sentences."""


def _smaller(text):
    for pattern, replacement in SMALLER:
        text = re.sub(pattern, replacement, text)
    return text


def _run(text, folder):
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(PROJECT),
        "ACCELERATOR": "none",
    }
    done = subprocess.run(
        ["bash", "-e", "-c", text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkout, set up, with what a reader brings: scans of a hospital and two public sets."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("configs", "launch", "pyproject.toml", "constraints.txt"):
        (folder / name).symlink_to(PROJECT / name)
    script = folder / "run.sh"
    script.write_text(_smaller((PROJECT / "run.sh").read_text()))
    script.chmod(0o755)
    for place in (folder / "bin", folder / ".venv" / "bin"):
        place.mkdir(parents=True)
        python = place / "python"
        python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        python.chmod(0o755)
    _run("cat pyproject.toml constraints.txt | cksum >.venv/installed", folder)
    with (folder / ".venv" / "installed").open("a") as installed:
        installed.write("dev\n")
    _make_hospital(folder)
    _make_public_sets(folder)
    return folder


def _make_hospital(folder):
    """The documents' own folder to try things on, its labels in a table beside it."""
    (command,) = [text for text in INLINE if "phantom --out hospital" in text]
    _run(command, folder)
    manifest = folder / "hospital" / "manifest.csv"
    with manifest.open(newline="") as file:
        labels = [(row["path"], row["label"]) for row in csv.DictReader(file)]
    manifest.unlink()
    # A hospital's folder has no masks of lesions.
    for truth in ("masks", "lesions"):
        shutil.rmtree(folder / "hospital" / truth)
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *labels])


def _make_public_sets(folder):
    picture = np.random.default_rng(0).integers(0, 255, (64, 16), np.uint8)
    for name in (
        *("BS-80K/wholeBodyANT/0.jpg", "BS-80K/wholeBodyPOST/0.jpg"),
        *("bone-scans/Metastatic/Anterior/A1.png", "bone-scans/Metastatic/Posterior/P1.png"),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    for view in ("ANT", "POST"):
        (folder / f"BS-80K/wholeBody{view}.txt").write_text("0.jpg 0\n")


@functools.cache
def _help_of(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _check_options(text):
    """Compares every `python -m` of a text with what the command knows."""
    checked = 0
    for line in text.replace("\\\n", " ").splitlines():
        found = re.search(
            r"python -m (?P<module>(?:dscint_jax|tfds_builder|tests)[\w.]*)(.*)", line
        )
        if not found:
            continue
        checked += 1
        for word in shlex.split(found[2], comments=True):
            flag = word.partition("=")[0]
            if flag.startswith("--config."):
                field = flag.removeprefix("--config.")
                assert field in FIELDS or field.startswith("model_options."), f"{flag} in {line}"
            elif flag.startswith("-") and " " not in word:
                known = re.findall(r"--?\w[\w-]*", _help_of(found["module"]))
                assert flag in known, f"{flag} in {line}"
            elif flag.startswith("configs/"):
                assert (PROJECT / flag.partition(":")[0]).is_file(), f"{flag} in {line}"
    return checked


def test_every_block_says_what_it_is():
    assert {block.language for block in BLOCKS} <= {"bash", "text", "python"}
    assert len(COMMANDS) > 15
    assert {str(block) for block in BLOCKS if block.why_parsed_only} <= set(map(str, COMMANDS))


def test_no_block_hides_behind_another_mark():
    # A fence of another kind, or a block that is only indented, would never be looked at.
    for document in DOCUMENTS:
        source = (PROJECT / document).read_text()
        assert source.count("```") == 2 * sum(b.document == document for b in BLOCKS), document
        outside = FENCE.sub("", source)
        assert "~~~" not in outside
        for line in outside.splitlines():
            assert not re.match(r" {4,}(\./run\.sh|python|pip|mpirun|node\d)", line), line


def test_every_document_stands_on_a_shelf():
    found = {str(path.relative_to(PROJECT)) for path in (PROJECT / "docs").rglob("*.md")}
    assert found <= set(DOCUMENTS)
    assert len(set(DOCUMENTS)) == len(DOCUMENTS)
    assert all(len(list((PROJECT / shelf).glob("*.md"))) > 1 for shelf in SHELVES)


def test_readme_is_read_in_five_minutes():
    assert len((PROJECT / "README.md").read_text().splitlines()) <= MOST_LINES_OF_README


def test_every_command_of_a_block_is_run_once():
    # One command a line, so that a line can be left out where it was run before.
    run = [_words(line) for block in RUN for line in _lines(block.text)]
    assert len(set(run)) == len(run)
    assert set(run) == {_words(line) for block in NOT_PARSED_ONLY for line in _lines(block.text)}
    for block in RUN:
        for line in _lines(block.text):
            done = subprocess.run(["bash", "-n", "-c", line], capture_output=True, text=True)
            assert done.returncode == 0, f"{block}: {done.stderr}"


def _is_field(name):
    groups = {field.rpartition(".")[0] for field in FIELDS}
    return name in {"FIELD", *FIELDS, *groups} or name.startswith("model_options.")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_field_of_a_config_that_is_named_exists(document):
    for field in re.findall(r"--config\.(\w+(?:\.\w+)*)", (PROJECT / document).read_text()):
        assert _is_field(field), field
    for span in _spans(document):
        named = re.fullmatch(r"config\.(\w+(?:\.\w+)*)(?:=.*)?", span)
        if named and named[1] != "json":
            assert _is_field(named[1]), span


def _headings(document):
    """The anchors of a document's headings, as web pages that show it make them."""
    found = []
    for title in re.findall(r"^#+ (.+)$", FENCE.sub("", document.read_text()), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        repeated = found.count(anchor)
        found.append(f"{anchor}-{repeated}" if repeated else anchor)
    return found


def _links(document):
    prose = re.sub(r"`[^`]*`", "", FENCE.sub("", (PROJECT / document).read_text()))
    links = re.findall(r"\]\(\s*([^)\s]+)\s*\)", prose)
    return [link for link in links if not link.startswith("https://")]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_points_at_a_file_and_a_heading_that_exist(document):
    for link in _links(document):
        assert ":" not in link, link
        path, _, anchor = link.partition("#")
        target = (PROJECT / document).parent / path if path else PROJECT / document
        assert target.resolve().is_relative_to(PROJECT.resolve()), link
        assert target.is_file(), link
        if anchor:
            assert anchor in _headings(target), f"{link}: {_headings(target)}"


def test_index_links_to_every_document_of_the_shelves():
    linked = {
        str((PROJECT / "docs" / link.partition("#")[0]).resolve())
        for link in _links("docs/README.md")
    }
    for path in (PROJECT / "docs").rglob("*.md"):
        assert path == PROJECT / "docs" / "README.md" or str(path.resolve()) in linked, path


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_that_is_named_exists(document):
    for span in _spans(document):
        if re.fullmatch(r"(dscint_jax|tfds_builder|tests|configs|docs|launch|\.ci)/[\w./-]*", span):
            assert (PROJECT / span).exists(), span


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_module_that_is_named_exists(document):
    named = r"\b(?:dscint_jax|tfds_builder|tests)(?:\.[a-z]\w*)+"
    for name in re.findall(named, (PROJECT / document).read_text()):
        assert _module_file(name), name


def _module_file(name):
    path = PROJECT / name.replace(".", "/")
    found = [path.with_name(f"{path.name}.py"), path / "__init__.py"]
    return next((one for one in found if one.is_file()), None)


def _defines(path, name):
    begins = rf"^\s*(?:(?:def|class) {name}\b|(?:\w+, )*{name}\b(?:, \w+)*(?:: [^=]+)? = )"
    return re.search(begins, path.read_text(), re.MULTILINE) is not None


def test_every_name_that_the_recipes_say_to_touch_is_in_its_file():
    prose = FENCE.sub("", (PROJECT / "docs" / "extending.md").read_text())
    pattern = r"`(?P<path>[\w/]+\.py)`\s+\((?P<names>`\w+`(?:,\s+`\w+`)*)\)"
    checked = 0
    for found in re.finditer(pattern, prose):
        for name in re.findall(r"\w+", found["names"]):
            assert _defines(PROJECT / found["path"], name), f"{name} in {found['path']}"
            checked += 1
    assert checked > 80


def test_every_command_of_the_packages_is_in_the_list_of_commands():
    listed = (PROJECT / "docs" / "reference" / "commands.md").read_text()
    commands = []
    for package in ("dscint_jax", "tfds_builder"):
        for path in (PROJECT / package).rglob("*.py"):
            if path.name == "__main__.py" or '__name__ == "__main__"' in path.read_text():
                parts = path.relative_to(PROJECT).with_suffix("").parts
                commands.append(".".join(part for part in parts if part != "__main__"))
    assert len(commands) > 10
    for command in commands:
        assert f"`python -m {command}`" in listed, command


def test_every_finding_about_pixels_is_explained():
    spans = _spans("docs/how_to/check_a_data_set.md")
    for finding in FINDINGS:
        assert {finding, finding.partition(":")[0]} & set(spans), finding


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=str)
def test_python_is_python_and_imports_what_there_is(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(("dscint_jax", "tfds_b")):
            for alias in node.names:
                assert _defines(_module_file(node.module), alias.name), alias.name


def _without_docker(text):
    """What containers run, as commands outside of them."""
    text = text.replace("\\\n", " ")
    text = re.sub(r"docker run .*? dscint-service ", "python -m dscint_jax.predict.serve ", text)
    return re.sub(r"docker run .*? dscint(?::\w+)? ", "python -m ", text)


def _check_images(text):
    """Compares what images are built with and from with the Dockerfile."""
    known = (PROJECT / "Dockerfile").read_text()
    named = [f"ARG {name}=" for name in re.findall(r"--build-arg (\w+)", text)]
    named += [f" AS {name}\n" for name in re.findall(r"--target (\w+)", text)]
    assert all(one in known for one in named)
    return len(named)


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in COMMANDS if b.why_parsed_only], ids=str)
def test_options_of_a_block_that_cannot_run_here_are_known(block):
    checked = _check_options(_without_docker(block.text)) + _check_images(block.text)
    extras = (PROJECT / "pyproject.toml").read_text()
    for extra in re.findall(r'"?\.\[(\w+)\]', block.text):
        assert f"\n{extra} = [" in extras
        checked += 1
    assert checked, block.text


@pytest.mark.slow
@pytest.mark.parametrize("command", INLINE)
def test_options_of_a_command_in_a_sentence_are_known(command):
    if command.startswith("./run.sh"):
        commands = re.findall(r"^  (\w+)  ", (PROJECT / "run.sh").read_text(), re.MULTILINE)
        assert command.split()[1:2] in [[], *([name] for name in commands)]
    elif not command.startswith(("python -m ruff ", "python -m pytest ")):
        assert _check_options(command) == 1


@pytest.mark.timeout(1000)
@pytest.mark.parametrize(
    "block",
    [
        pytest.param(
            block,
            marks=pytest.mark.exhaustive if block.document in AT_NIGHT else pytest.mark.slow,
            id=str(block),
        )
        for block in RUN
    ],
)
def test_block_runs_where_those_before_it_ran(block, folder):
    _run(_smaller(block.text), folder)
    if "tfds_builder.scan" in block.text and block.output:
        # The document shows the manifest that this command writes.
        (out,) = re.findall(r"--out (\S+)", block.text)
        assert (folder / out).read_text().splitlines() == block.output.splitlines()
