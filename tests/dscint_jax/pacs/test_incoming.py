"""From received instances to answers, with a trained network, in this process."""

import io

import pydicom
import pytest

from dscint_jax.pacs.queue import PICTURE, REPORT, Queue
from dscint_jax.predict.incoming import Incoming
from dscint_jax.predict.predict import open_networks, predict
from dscint_jax.predict.studies import worker_pool
from tests.dscint_jax.conftest import keep_frame
from tests.dscint_jax.pacs.service import another


@pytest.fixture(scope="module")
def networks(run):
    return open_networks([run], "best")


@pytest.fixture(scope="module")
def pool():
    with worker_pool(1) as pool:
        yield pool


class Steps:
    """A queue with the steps, and the answers that were sent."""

    def __init__(self, folder, networks, pool, **options):
        self.queue, self.sent = Queue(folder / "state"), []
        self._incoming = Incoming(
            self.queue, networks, pool, self._send, "PACS", quiet_seconds=0.0, **options
        )

    def _send(self, paths):
        self.sent.append([pydicom.dcmread(path) for path in paths])

    def receive(self, *datasets):
        for one in datasets:
            content = io.BytesIO()
            one.save_as(content, enforce_file_format=True)
            self.queue.put(content.getvalue())
        self._incoming.step(lambda: False)
        self._incoming.step(lambda: False)

    def reasons(self):
        return [path.read_text() for path in (self.queue.root / "aside").rglob("*.txt")]


@pytest.fixture
def steps(tmp_path, networks, pool):
    steps = Steps(tmp_path, networks, pool)
    yield steps
    steps.queue.close()


def test_answer_is_that_of_the_command_for_files(steps, scans, run, tmp_path, capsys):
    dataset = pydicom.dcmread(scans[0])
    steps.receive(dataset)
    predict([run], [scans[0]], tmp_path / "out", pages=False, dicom=True)
    ((report, picture),) = steps.sent
    for made, kind in ((report, "report"), (picture, "picture")):
        own = pydicom.dcmread(tmp_path / "out" / f"study_0001_{kind}.dcm")
        assert made.SOPInstanceUID == own.SOPInstanceUID
        assert made.SeriesInstanceUID == own.SeriesInstanceUID
        assert made.StudyInstanceUID == dataset.StudyInstanceUID
    assert str(report.ContentSequence) == str(
        pydicom.dcmread(tmp_path / "out" / "study_0001_report.dcm").ContentSequence
    )
    # Nothing of the patient is left, and nothing was said of him.
    assert not list(steps.queue.root.rglob("*.dcm"))
    said = capsys.readouterr().out
    for secret in (dataset.PatientID, str(dataset.PatientName), dataset.StudyInstanceUID):
        assert secret not in said


def _named(report):
    """The instances that a report says it is of."""
    (evidence,) = report.CurrentRequestedProcedureEvidenceSequence
    return {
        str(one.ReferencedSOPInstanceUID)
        for series in evidence.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }


def test_own_answers_that_come_back_are_not_answered(steps, scans):
    steps.receive(pydicom.dcmread(scans[0]))
    ((report, picture),) = steps.sent
    steps.receive(report, picture)
    assert len(steps.sent) == 1
    assert steps.queue.summary().startswith(
        "0 received, 0 waiting, 0 reading, 0 sending, 1 answered"
    )
    assert not steps.reasons()


def test_images_of_one_study_are_answered_together(steps, scans):
    first, second = pydicom.dcmread(scans[0]), another(scans[0])
    steps.receive(first, second)
    ((report, _),) = steps.sent
    assert _named(report) == {first.SOPInstanceUID, second.SOPInstanceUID}


def test_later_images_of_an_answered_study_are_answered_by_themselves(steps, scans):
    first, later = pydicom.dcmread(scans[0]), another(scans[0])
    steps.receive(first)
    steps.receive(first)
    assert len(steps.sent) == 1
    steps.receive(first, later)
    (before, _), (after, _) = steps.sent
    assert before.StudyInstanceUID == after.StudyInstanceUID
    assert before.SOPInstanceUID != after.SOPInstanceUID


@pytest.mark.parametrize(
    "attributes, reason",
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"]}, "is a TOMO acquisition"),
        ({"Modality": "CT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, ""),
        ({"StudyInstanceUID": ""}, "has no StudyInstanceUID"),
        ({"SeriesInstanceUID": ""}, "has no SeriesInstanceUID"),
        ({"PixelData": bytes(8)}, ""),
    ],
)
def test_what_is_not_for_the_network_is_set_aside_with_its_reason(steps, scans, attributes, reason):
    steps.receive(another(scans[0], **attributes), pydicom.dcmread(scans[1]))
    assert len(steps.sent) == 1
    assert steps.sent[0][0].StudyInstanceUID == pydicom.dcmread(scans[1]).StudyInstanceUID
    (found,) = steps.reasons()
    assert found.startswith(reason)
    assert len(found) > 5


def test_study_of_two_patients_is_set_aside(steps, scans):
    steps.receive(pydicom.dcmread(scans[0]), another(scans[0], PatientID="SOMEBODY ELSE"))
    assert not steps.sent
    assert steps.reasons() == ["names several patients\n"]


def one_view(path, frame, **attributes):
    """A view of a file as a file of its own."""
    dataset = another(path)
    keep_frame(dataset, frame)
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def test_files_of_one_study_without_a_patient_are_answered_together(steps, scans):
    steps.receive(*(one_view(scans[0], frame, PatientID="") for frame in (0, 1)))
    ((report, _),) = steps.sent
    assert len(_named(report)) == 2
    assert not steps.reasons()


def test_damaged_view_is_set_aside_and_its_sound_copy_is_answered_later(steps, scans):
    first, second = (one_view(scans[0], frame) for frame in (0, 1))
    sound = second.PixelData
    second.PixelData = sound[: len(sound) // 2]
    steps.receive(first, second)
    ((report, _),) = steps.sent
    assert _named(report) == {first.SOPInstanceUID}
    (reason,) = steps.reasons()
    assert reason.startswith("holds")
    assert len([*(steps.queue.root / "aside").glob("*.dcm")]) == 1
    second.PixelData = sound
    steps.receive(second)
    assert _named(steps.sent[1][0]) == {second.SOPInstanceUID}
    assert len(list((steps.queue.root / "answered").glob("*/*.json"))) == 2


def test_fault_in_a_library_sets_aside_the_study_alone(steps, scans, monkeypatch, capsys):
    bad = pydicom.dcmread(scans[0])

    def fail(answer, *arguments):
        if answer.study.study_id == bad.StudyInstanceUID:
            raise RuntimeError(f"what a library says of {bad.PatientName}")
        return made(answer, *arguments)

    from dscint_jax.predict import incoming

    made = incoming.dicom_results
    monkeypatch.setattr(incoming, "dicom_results", fail)
    steps.receive(bad, pydicom.dcmread(scans[1]))
    assert len(steps.sent) == 1
    assert steps.reasons() == ["could not be read (RuntimeError)\n"]
    assert str(bad.PatientName) not in capsys.readouterr().out


def test_images_are_kept_where_that_is_asked_for(tmp_path, networks, pool, scans):
    steps = Steps(tmp_path, networks, pool, keep=True)
    steps.receive(pydicom.dcmread(scans[0]))
    (marker,) = (steps.queue.root / "answered").glob("*/*.json")
    names = {path.name for path in marker.with_suffix("").iterdir()}
    assert len(names) == 3
    assert {REPORT, PICTURE} < names
    steps.queue.close()


def test_study_after_the_first_takes_about_a_second(steps, scans, capsys):
    for path in scans[2:5]:
        steps.receive(pydicom.dcmread(path))
    lines = [line for line in capsys.readouterr().out.splitlines() if " read in " in line]
    seconds = [float(line.split()[-2]) for line in lines]
    assert len(seconds) == 3
    # A compilation takes ten times as long.
    assert min(seconds[1:]) < 3
