import csv
import shutil
import subprocess

import numpy as np
import pydicom
import pytest
from PIL import Image

from dscint_jax.evaluate.restored import Chosen, TrainedNetwork
from dscint_jax.predict.answers import Verdict
from dscint_jax.predict.dicom_results import _banner, capture, report
from dscint_jax.predict.predict import predict
from dscint_jax.predict.sources import source_of
from tests.dscint_jax.conftest import keep_frame

highdicom = pytest.importorskip("highdicom", exc_type=ImportError)


@pytest.fixture(scope="module")
def sources(cohort):
    """A file of each maker, the first of the cohort."""
    found = {}
    for path in sorted((cohort / "images").iterdir()):
        maker = str(pydicom.dcmread(path, stop_before_pixels=True).Manufacturer)
        found.setdefault(maker, path)
    assert len(found) >= 2
    return [*found.values()]


@pytest.fixture(scope="module")
def single_frames(sources, tmp_path_factory):
    """The studies of `sources` as two files of one frame each, as some archives keep them."""
    folder = tmp_path_factory.mktemp("single")
    made = []
    for number, path in enumerate(sources):
        for frame in (0, 1):
            scan = pydicom.dcmread(path)
            keep_frame(scan, frame)
            scan.SOPInstanceUID = pydicom.uid.generate_uid()
            scan.file_meta.MediaStorageSOPInstanceUID = scan.SOPInstanceUID
            scan.StudyInstanceUID = f"1.2.3.{number}"
            scan.InstanceNumber = frame + 1
            made.append(folder / f"{number}_{frame}.dcm")
            scan.save_as(made[-1])
    return made


@pytest.fixture(scope="module")
def written(run, sources, single_frames, tmp_path_factory):
    out = tmp_path_factory.mktemp("dicom") / "out"
    found = predict([run], [*sources, *single_frames], out, pages=False, dicom=True)
    assert len(found) == 2 * len(sources)
    return out, found


def _objects(written):
    out, answers = written
    for answer in answers:
        source = pydicom.dcmread(answer.study.files[0], stop_before_pixels=True)
        name = f"study_{answer.study.number:04d}"
        yield answer, source, *(out / f"{name}_{kind}.dcm" for kind in ("report", "picture"))


def test_results_belong_to_the_study_and_the_patient_of_their_source(written):
    for _, source, *paths in _objects(written):
        for path in paths:
            made = pydicom.dcmread(path)
            for name in ("PatientID", "PatientName", "StudyInstanceUID", "StudyDate"):
                assert made.get(name) == source.get(name)
            assert made.SeriesInstanceUID != source.SeriesInstanceUID
            assert "research" in made.SeriesDescription.lower()


def test_report_says_what_the_table_says_and_names_the_frames_that_were_read(written):
    with (written[0] / "studies.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, (answer, source, path, _) in zip(rows, _objects(written), strict=True):
        content = highdicom.sr.srread(path).content
        (group,) = content.get_image_measurement_groups()
        values = [float(one.value) for one in group.get_measurements()]
        chances = [float(value) for name, value in row.items() if name.startswith("p_")]
        np.testing.assert_allclose(values, chances, atol=1e-6)
        assert np.allclose(sum(values), 1, atol=1e-6)
        label = answer.verdict.label
        assert group.finding_type.meaning.lower() in (label.replace("_", " "), f"bony {label}")
        files = [pydicom.dcmread(path) for path in answer.study.files]
        uids = [image.referenced_sop_instance_uid for image in group.source_images]
        assert uids == list(dict.fromkeys(file.SOPInstanceUID for file in files))
        frames = [image.frame for image in answer.said.facts]
        assert len(frames) == 2
        for image in group.source_images:
            # A frame of the only one is not numbered (PS3.3 table 10-3).
            numbers = image.referenced_frame_numbers
            assert numbers is None if len(uids) == 2 else list(numbers) == frames
        evidence = pydicom.dcmread(path).CurrentRequestedProcedureEvidenceSequence
        assert [study.StudyInstanceUID for study in evidence] == [source.StudyInstanceUID]


def test_picture_shows_both_views_below_a_banner(written):
    for _, _, _, path in _objects(written):
        pixels = pydicom.dcmread(path).pixel_array
        rows, *others = pixels.shape
        assert others == [512, 3]
        banner = pixels[: rows - 1024]
        assert len(banner) > 30
        assert banner.min() < 100 < banner.max()


@pytest.mark.parametrize("columns", [256, 512])
def test_banner_holds_all_of_its_text(columns):
    long = Verdict("thyroid_carcinoma_of_a_long_name", 0.5, 0.9)
    remarks = ["counts: 1,234,567, and training has 300,000 to 900,000"]
    short = _banner(columns, long, [])
    banner = _banner(columns, long, remarks)
    assert len(banner) > len(short)
    # As much ink as the same words have on one line each, where nothing is cut.
    whole = _banner(4096, long, remarks)
    assert (banner < 128).sum() == pytest.approx((whole < 128).sum(), rel=0.02)
    for edge in (banner[:2], banner[-2:], banner[:, :2], banner[:, -2:]):
        assert edge.min() == 255


def test_remarks_are_in_the_report_and_above_the_picture(run, sources, tmp_path):
    scan = pydicom.dcmread(sources[0])
    pixels = np.minimum(scan.pixel_array.astype(int) * 20, 65535).astype(np.uint16)
    scan.PixelData, scan.CountsAccumulated = pixels.tobytes(), int(pixels.sum())
    scan.save_as(tmp_path / "Canary.dcm")
    damaged = pydicom.dcmread(sources[0])
    damaged.SOPInstanceUID, damaged.PixelData = pydicom.uid.generate_uid(), bytes(8)
    damaged.save_as(tmp_path / "Canary_2.dcm")
    (answer,) = predict([run], [tmp_path], tmp_path / "out", pages=False, dicom=True)
    assert answer.remarks
    report = pydicom.dcmread(tmp_path / "out" / "study_0001_report.dcm")
    texts = [one.value for one in report.iterall() if one.keyword == "TextValue"]
    assert {*answer.remarks} < {*texts}
    assert any(text.startswith("a file was not read: it ") for text in texts)
    assert "Canary" not in str(report)
    picture = pydicom.dcmread(tmp_path / "out" / "study_0001_picture.dcm")
    said = _banner(512, answer.verdict, [])
    assert picture.Rows - 1024 > len(said)


def test_codes_of_classes_are_told_apart(sources, tmp_path):
    header = source_of(sources[0])
    classes = ("degenerative_joint_disease", "degenerative_joint_inflammation", "normal")

    def codes(names, best):
        verdict = Verdict(best, 0.5, 0.0)
        made = report([header], [(0, 1)], np.full(3, 1 / 3), verdict, names, "network")
        made.save_as(tmp_path / "report.dcm", enforce_file_format=True)
        content = highdicom.sr.srread(tmp_path / "report.dcm").content
        (group,) = content.get_image_measurement_groups()
        names = {one.name.meaning: one.name.value for one in group.get_measurements()}
        return group.finding_type.value, names

    first, second = (codes(classes, best) for best in classes[:2])
    assert first[0] != second[0]
    assert len({*first[1].values()}) == 3
    assert codes(classes[::-1], "normal")[1] == first[1]


@pytest.mark.parametrize("kind", ["report", "picture"])
def test_validator_finds_no_error(written, kind):
    if not shutil.which("dciodvfy"):
        pytest.skip("needs dciodvfy (dicom3tools)")
    for path in written[0].glob(f"*_{kind}.dcm"):
        done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True)
        assert "Error" not in done.stdout + done.stderr


def test_dcmtk_reads_the_report(written):
    if not shutil.which("dsrdump"):
        pytest.skip("needs dsrdump (dcmtk)")
    for path in written[0].glob("*_report.dcm"):
        done = subprocess.run(["dsrdump", path], capture_output=True, text=True)
        assert done.returncode == 0
        assert "Probability of" in done.stdout


@pytest.fixture
def strict():
    """pydicom refuses every value that is not of its type."""
    before = pydicom.config.settings.reading_validation_mode
    pydicom.config.settings.reading_validation_mode = pydicom.config.RAISE
    yield
    pydicom.config.settings.reading_validation_mode = before


@pytest.mark.parametrize("kind", ["report", "picture"])
def test_strict_reader_takes_every_element(written, strict, kind):
    paths = sorted(written[0].glob(f"*_{kind}.dcm"))
    assert len(paths) == len(written[1])
    for path in paths:
        dataset = pydicom.dcmread(path)
        assert sum(1 for _ in dataset.iterall()) > 40
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID


def test_header_that_lacks_what_objects_need_has_it_empty(run, sources, tmp_path):
    scan = pydicom.dcmread(sources[0])
    for name in ("AccessionNumber", "StudyID", "StudyTime", "ReferringPhysicianName"):
        del scan[name]
    scan.save_as(tmp_path / "lacks.dcm")
    predict([run], [tmp_path / "lacks.dcm"], tmp_path / "out", pages=False, dicom=True)
    for kind in ("report", "picture"):
        made = pydicom.dcmread(tmp_path / "out" / f"study_0001_{kind}.dcm")
        assert made.AccessionNumber == made.StudyID == ""


def test_number_of_frames_that_is_empty_makes_results_all_the_same(run, sources, tmp_path):
    scan = pydicom.dcmread(sources[0])
    scan.NumberOfFrames = None
    scan.save_as(tmp_path / "empty.dcm")
    predict([run], [tmp_path / "empty.dcm"], tmp_path / "out", pages=False, dicom=True)
    assert len(list((tmp_path / "out").glob("study_0001_*.dcm"))) == 2


@pytest.mark.parametrize(
    "name, held, value", [("PatientSex", "O", "W"), ("StudyDate", "20990101", "no date.")]
)
def test_header_that_no_object_may_have_is_said_in_one_line(
    name, held, value, run, sources, tmp_path, capsys
):
    scan = pydicom.dcmread(sources[0])
    setattr(scan, name, held)
    scan.save_as(tmp_path / "odd.dcm")
    content = (tmp_path / "odd.dcm").read_bytes()
    element = scan[name].tag
    place = content.index(
        element.group.to_bytes(2, "little") + element.element.to_bytes(2, "little")
    )
    start = content.index(held.encode(), place)
    changed = content[:start] + value.encode() + content[start + len(held) :]
    (tmp_path / "odd.dcm").write_bytes(changed)
    predict([run], [tmp_path / "odd.dcm"], tmp_path / "out", pages=False, dicom=True)
    (note,) = [line for line in capsys.readouterr().out.splitlines() if "DICOM results" in line]
    assert note.startswith("note: study_0001 has no DICOM results: it has a header that does not")
    assert (tmp_path / "out" / "studies.csv").exists()
    assert not list((tmp_path / "out").glob("*.dcm"))


def test_damaged_header_costs_no_other_study_and_is_said(run, sources, tmp_path, capsys):
    content = sources[0].read_bytes()
    place = content.index(b"\x08\x00\x20\x00DA")
    damaged = content[: place + 4] + b"ZZ" + content[place + 6 :]
    (tmp_path / "damaged.dcm").write_bytes(damaged)
    lacking = pydicom.dcmread(sources[0])
    del lacking.SeriesInstanceUID
    lacking.SOPInstanceUID = lacking.StudyInstanceUID = "1.2.3"
    lacking.save_as(tmp_path / "lacking.dcm")
    files = [tmp_path / "damaged.dcm", tmp_path / "lacking.dcm", sources[1]]
    predict([run], files, tmp_path / "out", pages=False, dicom=True)
    said = capsys.readouterr().out
    assert "note: study_0001 has no DICOM results: it has a damaged header (" in said
    assert "note: study_0002 has no DICOM results: it has no SeriesInstanceUID" in said
    assert {path.name for path in (tmp_path / "out").glob("*.dcm")} == {
        f"study_0003_{kind}.dcm" for kind in ("report", "picture")
    }


@pytest.mark.parametrize(
    "sets, name",
    [
        ("ISO_IR 100", "M\xfcller^J\xf6rg"),
        ("ISO_IR 126", "\u0394\u03b9\u03bf\u03bd\u03c5\u03c3\u03b9\u03bf\u03c2"),
        ("GB18030", "Wang^XiaoDong=\u738b^\u5c0f\u4e1c"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=\u6d2a^\u5409\u6d1e"),
        ("ISO_IR 192", "\u0141ukasz^\u017bak"),
    ],
)
def test_text_in_any_script_is_kept_beside_classes_in_another(sources, tmp_path, sets, name):
    scan = pydicom.dcmread(sources[0])
    scan.SpecificCharacterSet, scan.PatientName = sets, name
    scan.save_as(tmp_path / "scan.dcm")
    header = source_of(tmp_path / "scan.dcm")
    classes = ("normal", "\u9aa8\u8f6c\u79fb")
    verdict = Verdict(classes[1], 0.75, 0.0)
    made = report([header], [(0, 1)], np.array([0.25, 0.75]), verdict, classes, "network")
    picture = capture([header], np.zeros((16, 16, 3), np.uint8), "network")
    for number, one in enumerate((made, picture)):
        one.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
        again = pydicom.dcmread(tmp_path / f"{number}.dcm")
        assert again.SpecificCharacterSet == "ISO_IR 192"
        assert str(again.PatientName) == name
    assert "Probability of \u9aa8\u8f6c\u79fb" in str(pydicom.dcmread(tmp_path / "0.dcm"))
    if shutil.which("dciodvfy"):
        for path in (tmp_path / "0.dcm", tmp_path / "1.dcm"):
            done = subprocess.run(["dciodvfy", "-new", path], capture_output=True)
            assert b"Error" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "name, value",
    [("PatientID", "X" * 80), ("AccessionNumber", "A" * 20), ("PatientID", ["ANNA", "BERTA"])],
)
def test_value_that_is_none_of_its_type_is_not_copied_and_its_element_named(
    name, value, run, sources, tmp_path, capsys
):
    scan = pydicom.dcmread(sources[0])
    with pydicom.config.disable_value_validation():
        setattr(scan, name, value)
        scan.save_as(tmp_path / "odd.dcm")
    predict([run], [tmp_path / "odd.dcm"], tmp_path / "out", pages=False, dicom=True)
    (note,) = [line for line in capsys.readouterr().out.splitlines() if "DICOM results" in line]
    assert f"does not allow them: {name} has " in note
    assert not list((tmp_path / "out").glob("*.dcm"))


def test_same_study_read_again_has_the_same_uids(written, run, sources, tmp_path):
    predict([run], sources[:1], tmp_path / "again", pages=False, dicom=True)
    for kind in ("report", "picture"):
        names = {
            str(pydicom.dcmread(folder / f"study_0001_{kind}.dcm").SOPInstanceUID)
            for folder in (written[0], tmp_path / "again")
        }
        assert len(names) == 1


@pytest.mark.parametrize("change", ["weights", "temperature", "least_confidence", "version"])
def test_answer_of_another_reader_has_other_uids(
    change, written, run, sources, tmp_path, monkeypatch
):
    options = {"least_confidence": 1.0} if change == "least_confidence" else {}
    if change == "weights":
        monkeypatch.setattr(TrainedNetwork, "weights", lambda _: {"kernel": np.ones(3)})
    elif change == "temperature":
        chosen = Chosen(temperature=1.25, least_confidence={})
        monkeypatch.setattr("dscint_jax.predict.runs.chosen_by", lambda result: chosen)
    elif change == "version":
        monkeypatch.setattr("dscint_jax.predict.dicom_results.VERSION", "another")
    predict([run], sources[:1], tmp_path / "other", pages=False, dicom=True, **options)
    for kind in ("report", "picture"):
        before, after = (
            pydicom.dcmread(folder / f"study_0001_{kind}.dcm")
            for folder in (written[0], tmp_path / "other")
        )
        assert before.StudyInstanceUID == after.StudyInstanceUID
        assert before.SeriesInstanceUID != after.SeriesInstanceUID
        assert before.SOPInstanceUID != after.SOPInstanceUID


def test_study_that_is_no_dicom_file_has_no_dicom_results(run, tmp_path):
    body = np.zeros((1024, 256))
    body[100:900, 70:190] = 9
    pixels = np.minimum(np.random.default_rng(0).poisson(body), 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p17.png")
    out = tmp_path / "out"
    predict([run], [tmp_path / "p17.png"], out, pages=False, dicom=True, accept=True)
    assert (out / "studies.csv").exists()
    assert not list(out.glob("*.dcm"))
