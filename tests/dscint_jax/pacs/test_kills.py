"""The service beside a real PACS: killed at random moments, and fed with damaged files.

Each test prints what it measured: `pytest -s --run-slow --run-exhaustive` shows it.
"""

import collections
import contextlib
import io
import random
import sys
import threading
import time
from collections import Counter
from pathlib import PurePosixPath

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import create_file_meta, encode_file_meta

from dscint_jax.pacs.listener import NUCLEAR, SYNTAXES
from dscint_jax.pacs.queue import digest
from dscint_jax.predict.studies import worker_pool
from tests.dscint_jax.pacs.orthanc import ONE_OF_EACH, Orthanc, free_port, plugin
from tests.dscint_jax.pacs.service import Service, associate, wait_for
from tests.fuzz.mutations import make_mutant
from tests.fuzz.seeds import DICOM, make_seeds
from tests.fuzz.trial import Chunk, try_chunk
from tfds_builder.phantom import __main__ as phantom
from tfds_builder.readers.dicom import _transfer_syntax
from tfds_builder.scan.inventory import inspected

slow, exhaustive = pytest.mark.slow, pytest.mark.exhaustive
needs_orthanc = pytest.mark.skipif(
    plugin() is None, reason="needs orthanc and orthanc-dicomweb (Debian packages)"
)

QUIET_SECONDS = 1.0
SECONDS_A_STUDY, SECONDS_A_START = 3.0, 300.0
"""More than either takes on a machine that does other work, too."""


@pytest.fixture
def phantoms(tmp_path, monkeypatch):
    """Makes the files of so many phantom studies."""

    def make(count):
        folder = tmp_path / "phantom"
        words = ("--out", folder, "--patients", count, "--seed", 11)
        monkeypatch.setattr(sys, "argv", ["phantom", *map(str, words)])
        phantom.main()
        found = {}
        for path in sorted((folder / "images").iterdir()):
            study = str(pydicom.dcmread(path, stop_before_pixels=True).StudyInstanceUID)
            found.setdefault(study, path)
        return dict(list(found.items())[:count])

    return make


def _send_until_taken(orthanc, names, stop):
    """Sends each instance until the service says that it has it, and never again."""
    for name in names:
        while not stop.is_set() and not orthanc.send([name]):
            time.sleep(0.3)


@needs_orthanc
@pytest.mark.timeout(0)
@pytest.mark.parametrize("way", ["C-STORE", pytest.param("STOW-RS", marks=exhaustive)])
@pytest.mark.parametrize(
    "studies, kills", [pytest.param(8, 2, marks=slow), pytest.param(300, 20, marks=exhaustive)]
)
def test_every_study_is_answered_once_however_often_the_service_is_killed(
    studies, kills, way, run, phantoms, tmp_path
):
    seed = random.SystemRandom().randrange(2**16)
    draw, port, found, phases = random.Random(seed), free_port(), phantoms(studies), Counter()
    with Orthanc(tmp_path / "orthanc", port) as orthanc, contextlib.ExitStack() as stack:
        names = [orthanc.upload(path.read_bytes()) for path in found.values()]
        target = orthanc.node if way == "C-STORE" else orthanc.web
        words = ("ORTHANC@127.0.0.1", target, "--quiet_seconds", QUIET_SECONDS)
        service = stack.enter_context(Service(run, tmp_path, port, *words))
        stop, started = threading.Event(), time.monotonic()
        sender = threading.Thread(target=_send_until_taken, args=(orthanc, names, stop))
        stack.callback(stop.set)
        sender.start()
        for n in range(kills):
            # So that kills fall on studies from the first to the last.
            due = studies * n // (kills + 1)
            assert wait_for(lambda due=due: _answered(service) >= due, SECONDS_A_START)
            time.sleep(draw.uniform(0, 2))
            phases[_phase(service)] += 1
            service.kill()
            service.start(wait=False)
            # One kill in four falls on the start, when a queue is taken up again.
            if draw.random() < 0.25:
                time.sleep(draw.uniform(0, 12))
        most = studies * SECONDS_A_STUDY + SECONDS_A_START
        assert wait_for(lambda: _answered(service) == studies, most), (seed, service.log())
        seconds = time.monotonic() - started
        sender.join()
        assert service.stop() == 0
        answers = orthanc.answers()
    once = sum(answers.get(study) == ONE_OF_EACH for study in found)
    print(
        f"\n{way}, seed {seed}: {once} of {studies} studies with exactly one report and one "
        f"picture, {kills} kills {dict(phases)}, {seconds:.0f} s"
    )
    assert answers == dict.fromkeys(found, ONE_OF_EACH), (seed, service.log())
    assert service.left() == {}
    assert not list((service.state / "answered").rglob("*.dcm"))
    for path in list(found.values())[:3]:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        for secret in (header.PatientID, header.PatientName, header.StudyInstanceUID):
            assert str(secret) not in service.log()


def _answered(service):
    return len(list((service.state / "answered").glob("*/*.json")))


def _phase(service):
    """What lies in the queue when the process is killed."""
    held = [name for name in ("sending", "reading", "waiting", "received") if service.count(name)]
    return held[0] if held else "idle"


@pytest.mark.timeout(0)
@pytest.mark.parametrize(
    "files", [pytest.param(60, marks=slow), pytest.param(2000, marks=exhaustive)]
)
def test_damaged_files_are_set_aside_and_the_service_goes_on(files, run, sink, scans, tmp_path):
    seed = random.SystemRandom().randrange(2**16)
    damaged = _damaged(files, seed, tmp_path)
    port = free_port()
    words = ("--quiet_seconds", QUIET_SECONDS)
    with Service(run, tmp_path, port, "ORTHANC", sink.node, *words) as service:
        started, taken = time.monotonic(), 0
        for one in damaged:
            taken += _store_bytes(port, one) == 0
        association = associate(port)
        sound = pydicom.dcmread(scans[0])
        assert association.send_c_store(sound).Status == 0
        association.release()
        assert wait_for(lambda: len(sink.received) == 2, 120 + files), (seed, service.log())
        assert wait_for(lambda: service.left().keys() <= {"aside"}, 120), (seed, service.log())
        seconds = time.monotonic() - started
        assert service.process.poll() is None
        assert service.stop() == 0
    aside = list((service.state / "aside").rglob("*.dcm"))
    print(
        f"\nseed {seed}: {files} damaged files, {taken} taken, {len(aside)} set aside, "
        f"{len(sink.received)} answers (of the one sound study), {seconds:.0f} s"
    )
    assert {one.StudyInstanceUID for one in sink.received} == {sound.StudyInstanceUID}
    # Of one study and one instance, by what they say themselves, the last is kept.
    held = {path.name if path.parent.name == "aside" else _place(path) for path in aside}
    assert held == {one.place for one in damaged}, seed
    assert "CANARY" not in service.log()


Damaged = collections.namedtuple("Damaged", "content syntax uid place")


def _place(path):
    return f"{path.parent.name.partition('-')[0]}/{path.name}"


def _damaged(count, seed, folder):
    """Damaged DICOM files that the readers refuse, as the listener will write them."""
    seeds = tuple(one for one in make_seeds() if one.kind == DICOM)
    found, number, path = [], 0, folder / "damaged"
    with worker_pool(1) as pool:
        while len(found) < count:
            content = make_mutant(seed, number, seeds).content
            # Each is of a study of its own, unless it is compressed: the UIDs hold CANARY.
            content = content.replace(b"1.2.CANARY.", b"1.2.%06d." % number)
            number += 1
            start = 132 if content[128:132] == b"DICM" else 0
            syntax, start = _transfer_syntax(content, start)
            syntax = syntax if syntax in SYNTAXES else ExplicitVRLittleEndian
            uid = generate_uid()
            meta = create_file_meta(
                sop_class_uid=NUCLEAR[0], sop_instance_uid=uid, transfer_syntax=syntax
            )
            head = bytes(128) + b"DICM" + encode_file_meta(meta)
            path.write_bytes(head + content[start:])
            chunks = [Chunk(((0, path, None),))]
            ((outcome,),) = pool.map(try_chunk, chunks, Chunk.without)
            if outcome.images or not content[start:]:
                continue
            (told,) = inspected(pool, folder, [PurePosixPath(path.name)], accept=False)
            place = f"{digest(path.read_bytes())}.dcm"
            if told.study and told.instance:
                place = f"{digest(told.study)}/{digest(told.instance)}.dcm"
            found.append(Damaged(content[start:], syntax, uid, place))
    return found


def _store_bytes(port, one):
    """Sends a data set as it is; the status."""
    association = associate(port, classes=NUCLEAR[:1], syntax=one.syntax)
    request = C_STORE()
    request.MessageID, request.Priority = 1, 0
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = NUCLEAR[0], one.uid
    request.DataSet = io.BytesIO(one.content)
    (context,) = [cx for cx in association.accepted_contexts if cx.abstract_syntax == NUCLEAR[0]]
    # As `send_c_store` has it: else the association's own thread may take the answer.
    association._reactor_checkpoint.clear()
    assert wait_for(lambda: association._is_paused, 5)
    association.dimse.send_msg(request, context.context_id)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    association.release()
    return answer.Status
