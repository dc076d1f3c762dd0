"""The page that reads scans, in a browser: skips without node, Chromium or the packages of npm."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import RLELossless

from dscint_jax.evaluate.evaluate import evaluate
from dscint_jax.export.model_file import export
from dscint_jax.predict.browser import RUNTIME, SCRIPTS
from dscint_jax.predict.predict import predict

pytestmark = pytest.mark.slow

NODE, CHROMIUM = shutil.which("node"), shutil.which("chromium")


def _packages():
    """The node_modules that holds what the page is made of; None where one is missing."""
    wanted = [*SCRIPTS, RUNTIME, "playwright-core"]
    places = map(Path, os.environ.get("NODE_PATH", "").split(os.pathsep))
    return next((one for one in places if all((one / name).is_dir() for name in wanted)), None)


def _write_page(workdir, folder):
    export(workdir, folder / "model.onnx", format="onnx")
    command = [sys.executable, "-m", "dscint_jax.predict.browser"]
    command += ["--model", folder / "model.onnx", "--out", folder / "page.html"]
    done = subprocess.run(
        [*command, "--packages", _packages()], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return folder / "page.html"


@pytest.mark.parametrize(
    ("content", "out", "message"),
    [
        (None, "page.html", "cannot be read"),
        (b"no graph at all", "page.html", "is no ONNX file"),
        (b"", "page.html", "does not say its records"),
        (b"", "page.htm", "must end in .html"),
        (b"", "there.html", "--overwrite"),
        ("exported", "page.html", "npm install onnxruntime-web upng-js dicom-parser"),
    ],
)
def test_what_makes_no_page_is_one_line_and_leaves_none(trained, tmp_path, content, out, message):
    model = tmp_path / "model.onnx"
    (tmp_path / "there.html").write_text("an earlier page")
    if content == "exported":
        export(trained, model, format="onnx")
    elif content is not None:
        model.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    command = [sys.executable, "-m", "dscint_jax.predict.browser", "--model", model]
    command += ["--out", tmp_path / out, "--packages", tmp_path / "none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there.html").read_text() == "an earlier page"


def _drop(page, files):
    command = [NODE, Path(__file__).with_name("drop.cjs"), page, CHROMIUM, *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory):
    if not NODE or not CHROMIUM or not _packages():
        pytest.skip("needs node, chromium, and the page's packages and playwright-core of npm")
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(trained, folder / "run")
    evaluate(folder / "run", split="test", checkpoint="best")
    return _write_page(folder / "run", folder)


def _changed(path, to, change=None, matrix=None, **fields):
    """A file of its own with other fields, or with frames that `matrix` makes of its own."""
    dataset = pydicom.dcmread(path)
    for name, value in fields.items():
        setattr(dataset, name, value)
    if matrix:
        before = dataset.pixel_array
        frames = np.stack([matrix(frame) for frame in before])
        dataset.Rows, dataset.Columns = frames.shape[1:]
        dataset.PixelData = frames.astype(before.dtype).tobytes()
    if change:
        change(dataset)
    dataset.save_as(to)
    return to


def _halved(counts):
    """Twice as many rows and columns; blocks of four pixels hold the counts of one."""
    counts = counts.astype(int)
    parts = [(counts + n) // 4 for n in range(4)]
    return np.stack(parts, -1).reshape(*counts.shape, 2, 2).swapaxes(1, 2).reshape(2048, 512)


def _summed(counts):
    return counts.reshape(512, 2, 128, 2).sum((1, 3))


def _files_that_are_read(scans, folder):
    numbers = np.arange(10)
    first = pydicom.dcmread(scans[7]).pixel_array[0]
    Image.fromarray(first.astype(np.uint16)).save(folder / "counts.png")
    Image.fromarray(np.minimum(first, 255).astype(np.uint8)).save(folder / "grey.png")

    def overlay(dataset):
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 0
        pixels = np.frombuffer(dataset.PixelData, np.uint16).copy()
        assert pixels.max() < 4096
        pixels[numbers] |= 0x8000
        dataset.PixelData = pixels.tobytes()

    def implicit(dataset):
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian

    return [
        *scans[:3],
        _changed(scans[3], folder / "fine.dcm", matrix=_halved),
        _changed(scans[4], folder / "coarse.dcm", matrix=_summed),
        _changed(scans[5], folder / "narrow.dcm", matrix=lambda one: one[100:1001, 3:250]),
        _changed(
            scans[6], folder / "wide.dcm", matrix=lambda one: np.pad(one, ((40, 41), (9, 30)))
        ),
        _changed(scans[8], folder / "overlay.dcm", overlay),
        _changed(scans[9], folder / "implicit.dcm", implicit),
        folder / "counts.png",
        folder / "grey.png",
    ]


def test_page_says_what_predict_says_of_every_form_and_opens_no_connection(page, cohort, tmp_path):
    scans = sorted((cohort / "images").iterdir())
    makers = {pydicom.dcmread(path, stop_before_pixels=True).Manufacturer for path in scans[:3]}
    assert len(makers) == 2
    files = _files_that_are_read(scans, tmp_path)
    found = _drop(page, files)
    assert found["errors"] == []
    assert not found["escaped"]
    assert [re.sub(r"^(\w+):.*", r"\1", one) for one in found["requests"]] == ["file", "blob"]
    answers = predict([page.parent / "run"], files, tmp_path / "out", pages=False)
    expected = {Path(answer.study.files[0]).name: answer.said for answer in answers}
    assert len(found["studies"]) == len(expected) == len(files)
    for study in found["studies"]:
        said = expected[study["name"]]
        np.testing.assert_allclose(
            np.array(study["rows"])[:, 0], said.probabilities, atol=1e-5, err_msg=study["name"]
        )
        views = {str(record["view"]) for record in said.records}
        assert {*study["head"][2:]} in (views, {"view"})


def _flood(folder):
    Image.fromarray(np.full((512, 512), 9, np.uint16)).save(folder / "flood.png")
    return folder / "flood.png"


def test_what_the_page_does_not_read_is_said_and_the_others_go_on(page, cohort, tmp_path):
    sound = sorted((cohort / "images").iterdir())[0]
    colours = tmp_path / "colours.png"
    Image.new("RGB", (256, 1024), "red").save(colours)
    short = tmp_path / "short.dcm"
    short.write_bytes(sound.read_bytes()[:-1000])
    (tmp_path / "notes.txt").write_text("no image at all")

    def negative(dataset):
        dataset.PixelRepresentation = 1
        dataset.PixelData = b"\xff\xff" + dataset.PixelData[2:]

    random = np.random.default_rng(0)

    def one_frame_of_two(dataset):
        dataset.NumberOfFrames = 1
        dataset.DetectorVector = dataset.EnergyWindowVector = [1]

    def side_by_side(dataset):
        dataset.PixelData = np.concatenate([*dataset.pixel_array], 1).tobytes()
        dataset.Columns, dataset.NumberOfFrames = 512, 1
        dataset.DetectorVector = dataset.EnergyWindowVector = [1]

    refused = {
        _changed(
            sound,
            tmp_path / "transmission.dcm",
            ImageType=["ORIGINAL", "PRIMARY", "WHOLE BODY", "TRANSMISSION"],
        ): "is a transmission image",
        _changed(
            sound, tmp_path / "pet.dcm", SOPClassUID="1.2.840.10008.5.1.4.1.1.128"
        ): "no nuclear-medicine image",
        _changed(sound, tmp_path / "vector.dcm", DetectorVector=[1, 2, 1]): "says of 3 frames",
        _changed(sound, tmp_path / "one.dcm", one_frame_of_two): "more frames than its header",
        _changed(sound, tmp_path / "both.dcm", side_by_side): "would cut off much",
        _changed(
            sound, tmp_path / "stretched.dcm", matrix=lambda one: one.repeat(2, 1)
        ): "would cut off much",
        _changed(
            sound, tmp_path / "uniform.dcm", matrix=lambda one: random.poisson(20, one.shape)
        ): "uniform counts",
        _changed(sound, tmp_path / "rle.dcm", lambda one: one.compress(RLELossless)): "compressed",
        _changed(sound, tmp_path / "ct.dcm", Modality="CT"): "no nuclear-medicine image",
        _changed(sound, tmp_path / "slope.dcm", RescaleSlope="2", RescaleIntercept="0"): "rescales",
        _changed(sound, tmp_path / "text.dcm", BurnedInAnnotation="YES"): "text in its pixels",
        _changed(sound, tmp_path / "negative.dcm", negative): "negative pixels",
        _changed(
            sound, tmp_path / "spect.dcm", ImageType=["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"]
        ): "is a tomo acquisition",
        _changed(sound, tmp_path / "empty.dcm", matrix=np.zeros_like): "a view without counts",
        _changed(sound, tmp_path / "more.dcm", Rows=2048): "fewer than its header says",
        short: "is damaged",
        tmp_path / "notes.txt": "no DICOM file",
        colours: "no grey PNG",
        _flood(tmp_path): "no whole-body scan",
    }
    found = _drop(page, [*refused, sound])
    assert found["errors"] == []
    *others, last = found["studies"]
    for study, (path, reason) in zip(others, refused.items(), strict=True):
        assert study["name"] == path.name
        assert study["said"].startswith("Not read: it ")
        assert reason in study["said"]
    assert last["said"].startswith("Read as ")


def test_network_for_studies_is_given_both_views(page, trained_on_studies, cohort, tmp_path):
    dual = _write_page(trained_on_studies, tmp_path)
    files = sorted((cohort / "images").iterdir())[:3]

    def nameless(dataset):
        for item in dataset.DetectorInformationSequence:
            del item.ViewCodeSequence

    unknown = _changed(files[0], tmp_path / "unknown.dcm", nameless)
    found = _drop(dual, [*files, unknown])
    assert found["errors"] == []
    shutil.copytree(trained_on_studies, tmp_path / "run")
    answers = predict([tmp_path / "run"], files, tmp_path / "out", pages=False)
    expected = {Path(answer.study.files[0]).name: answer.said.probabilities for answer in answers}
    *read, refused = found["studies"]
    for study in read:
        values = np.array(study["rows"])[:, 0]
        np.testing.assert_allclose(values, expected[study["name"]], atol=1e-5)
    assert "does not code which view its frames are" in refused["said"]
