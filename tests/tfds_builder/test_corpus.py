import csv
import importlib.util
import logging
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tensorflow_datasets as tfds
from pydicom.pixels import get_decoder
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from tfds_builder import build
from tfds_builder.classes import PUBLISHED
from tfds_builder.commandline.errors import UserError
from tfds_builder.readers.image_file import decode, read_bytes
from tfds_builder.scintigraphy.data_set import VERSION
from tfds_builder.studies.matrix import fit_of

_SPEC = importlib.util.spec_from_file_location("corpus", Path(__file__).with_name("corpus.py"))
corpus = sys.modules["corpus"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(corpus)

NAMES = [recipe.name for recipe in corpus.recipes()]
READ = [recipe.name for recipe in corpus.recipes() if not recipe.reason]
REFUSED = [r.name for r in corpus.recipes() if r.reason and not r.by_pixels]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(scope="session")
def cases(folder):
    # Names and private elements in odd places are the point of the corpus.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    return {case.name: case for case in corpus.generate(folder)}


def case_of(cases, name):
    case = cases[name]
    if case.missing:
        pytest.skip(f"not installed: {case.missing}")
    return case


def read(case):
    return decode(read_bytes(case.path), case.frame, case.view)


def reason_of(case):
    with pytest.raises(UserError) as caught:
        read(case)
    return str(caught.value)


def test_every_case_has_a_name_of_its_own():
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("name", READ)
def test_a_readable_form_gives_its_views_and_their_counts(cases, name):
    case = case_of(cases, name)
    scintigram = read(case)
    found = [(view.frame, view.name, view.rule) for view in scintigram.views]
    assert found == [(view.frame, view.name, view.rule) for view in case.views]
    for view, expected in zip(scintigram.views, case.views, strict=True):
        assert_same_counts(view.native, expected.counts, case.worst)
        for note in case.notes:
            said = view.notes + view.findings
            assert any(note in one for one in said), said
    if not case.notes and case.frame is None:
        assert scintigram.counts_ratio in (1, pytest.approx(np.nan, nan_ok=True))


def assert_same_counts(found, expected, worst):
    if not worst:
        np.testing.assert_array_equal(found, expected)
        return
    difference = np.abs(found.astype(int) - expected.astype(int))
    assert 0 < difference.max() <= worst


@pytest.mark.parametrize("name", REFUSED)
def test_an_unusable_form_is_refused_for_its_own_reason(cases, name):
    case = case_of(cases, name)
    reason = reason_of(case)
    assert case.reason in reason
    assert "\n" not in reason


def test_reasons_and_notes_repeat_nothing_of_the_header(cases):
    for case in cases.values():
        if case.missing:
            continue
        try:
            views = read(case).views
            texts = [text for view in views for text in view.notes + view.findings]
        except UserError as error:
            texts = [str(error)]
        assert corpus.CANARY.lower() not in " ".join(texts).lower(), case.name


def test_the_same_reason_is_never_given_for_different_forms(cases):
    reasons = {
        case.name: reason_of(case)
        for case in cases.values()
        if case.reason and not case.by_pixels and not case.missing
    }
    for case in (cases[name] for name in reasons):
        others = {name for name, reason in reasons.items() if case.reason in reason}
        assert {cases[name].reason for name in others} == {case.reason}


def test_the_whole_corpus_is_built_and_what_cannot_be_is_in_quarantine(cases, folder, tmp_path):
    used = [case for case in cases.values() if not case.missing]
    manifest = write_manifest(used, folder)
    arguments = [
        "--manifest",
        manifest,
        "--data_dir",
        tmp_path,
        "--max_rejected",
        1,
        "--workers",
        1,
    ]
    build.main([str(one) for one in arguments])
    final = tmp_path / "scintigraphy" / "views" / VERSION
    quarantined = {int(line["row"]): line["reason"] for line in table(final / "quarantine.csv")}
    # The header is row 1 of a manifest.
    numbered = dict(enumerate(used, start=2))
    assert quarantined.keys() == {row for row, case in numbered.items() if case.reason}
    for row, reason in quarantined.items():
        assert numbered[row].reason in reason, numbered[row].name
    found = {
        (int(line["row"]), int(line["frame"])): line["image_id"]
        for line in table(final / "quality.csv")
    }
    assert found.keys() == {
        (row, view.frame) for row, case in numbered.items() for view in case.views
    }
    records = every_record(tmp_path)
    for row, case in numbered.items():
        for view in case.views:
            record = records[found[row, view.frame]]
            fit = fit_of(*view.counts.shape)
            assert_same_counts(record["image"][..., 0], fit.counts(view.counts), case.worst)
            assert record["view_rule"].decode() == view.rule
            notes = record["notes"].decode()
            assert all(note in notes for note in case.notes), (case.name, notes)
    assert len(records) == len(found)
    pair = [row for row, case in numbered.items() if case.study == "pair"]
    assert len({records[found[row, 1]]["study_key"] for row in pair}) == 1


def write_manifest(used, folder):
    path = folder / "manifest.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "patient_id", "label", "study_id", "view", "frame"])
        for n, case in enumerate(used):
            writer.writerow(
                [
                    case.path.name,
                    case.study or f"P-{n}",
                    PUBLISHED[0 if case.study else n % len(PUBLISHED)],
                    case.study,
                    case.view,
                    case.frame,
                ]
            )
    return path


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def every_record(data_dir):
    builder = tfds.builder("scintigraphy/views", data_dir=data_dir)
    sources = [builder.as_data_source(split) for split in builder.info.splits]
    records = [source[n] for source in sources for n in range(len(source))]
    return {record["image_id"].decode(): record for record in records}


def package_files(name, *parts):
    package = importlib.util.find_spec(name)
    if package is None or not package.submodule_search_locations:
        pytest.skip(f"{name} is not installed")
    top = Path(package.submodule_search_locations[0], *parts)
    paths = [path for path in sorted(top.rglob("*")) if path.is_file()]
    assert len(paths) > 20
    return paths


@pytest.mark.timeout(120)
@pytest.mark.parametrize("package, accepted", [("pydicom", set()), ("data_store", {"JPEG-LL.dcm"})])
def test_of_the_files_that_pydicom_tests_with_only_nema_nm1_is_read(package, accepted):
    parts = ("data", "test_files") if package == "pydicom" else ("data",)
    reasons = {path: outcome(path) for path in package_files(package, *parts)}
    assert {path.name for path, reason in reasons.items() if not reason} == accepted
    assert not [reason for reason in reasons.values() if "\n" in reason]
    # That is the last resort, where nothing better can be said.
    assert not {path.name for path, reason in reasons.items() if "damaged DICOM file" in reason}


def outcome(path):
    """The reason for which a file is refused; nothing where it is read."""
    try:
        decode(read_bytes(path))
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_nema_nm1_keeps_every_count_in_other_syntaxes(nema_nm1, tmp_path, syntax):
    (original,) = decode(read_bytes(nema_nm1)).views
    dataset = pydicom.dcmread(nema_nm1)
    dataset.decompress()
    dataset.compress(syntax)
    dataset.save_as(tmp_path / "nm1.dcm")
    (view,) = decode(read_bytes(tmp_path / "nm1.dcm")).views
    np.testing.assert_array_equal(view.native, original.native)
    assert (view.name, view.rule) == ("anterior", "GE private text")


@pytest.mark.parametrize(
    "syntax, package",
    [
        ("50", "pillow"),
        ("51", "pillow"),
        ("57", "python-gdcm"),
        ("70", "python-gdcm"),
        ("80", "pyjpegls"),
        ("81", "pyjpegls"),
        ("90", "pylibjpeg-openjpeg"),
        ("91", "pylibjpeg-openjpeg"),
        ("201", "pylibjpeg-openjpeg"),
        ("202", "pylibjpeg-openjpeg"),
        ("203", "pylibjpeg-openjpeg"),
    ],
)
def test_a_missing_codec_is_named_by_the_package_to_install(cases, monkeypatch, syntax, package):
    dataset = pydicom.dcmread(cases["HTJ2K .201"].path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(f"1.2.840.10008.1.2.4.{syntax}")
    content = pydicom.filebase.DicomBytesIO()
    dataset.save_as(content)
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    monkeypatch.setattr(type(decoder), "is_available", property(lambda self: False))
    with pytest.raises(UserError, match=f"pip install {package}"):
        decode(content.getvalue())
