"""The command for files, with studies from a real PACS and answers to it; and who is refused."""

import contextlib
import socket
import subprocess
import sys

import pydicom
import pytest

from tests.dscint_jax.pacs.orthanc import ONE_OF_EACH, Orthanc, free_port, plugin
from tests.dscint_jax.pacs.service import Service, another, associate, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        plugin() is None, reason="needs orthanc and orthanc-dicomweb (Debian packages)"
    ),
]


def _predict(*words):
    command = [sys.executable, "-m", "dscint_jax.predict", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("way", ["node", "web"])
def test_studies_are_retrieved_and_answers_filed_with_them(run, scans, tmp_path, way):
    with Orthanc(tmp_path / "orthanc", free_port()) as orthanc:
        for path in scans[:3]:
            orthanc.upload(path.read_bytes())
        # A second series, of another modality, is left where it is.
        orthanc.upload(
            _bytes(another(scans[0], Modality="CT", SeriesInstanceUID="1.2.3.4"), tmp_path)
        )
        headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in scans[:3]]
        wanted = [str(one.StudyInstanceUID) for one in headers[:2]]
        pacs = getattr(orthanc, way)
        own = ("--workdir", run, "--no_pages", "--from_pacs", pacs, "--to_pacs", pacs)
        done = _predict(*own, "--out", tmp_path / "out", "--study", *wanted)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert "2 files retrieved" in done.stdout
        assert orthanc.answers() == dict.fromkeys(wanted, ONE_OF_EACH)
        # Sent again it is the same; the day of the first has it, and its own answers are no images.
        day = str(headers[0].StudyDate)
        done = _predict(*own, "--out", tmp_path / "again", "--study_date", day)
        assert done.returncode == 0, done.stderr
        expected = {
            *wanted[:1],
            *(str(one.StudyInstanceUID) for one in headers if one.StudyDate == day),
        }
        answers = orthanc.answers()
        assert answers == dict.fromkeys({*wanted, *expected}, ONE_OF_EACH)
        done = _predict(*own, "--out", tmp_path / "none", "--study", "1.2.3.4.5")
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "has no nuclear-medicine images" in done.stderr
        assert not (tmp_path / "none").exists()


def _bytes(dataset, folder):
    dataset.save_as(folder / "one.dcm", enforce_file_format=True)
    return (folder / "one.dcm").read_bytes()


def test_who_is_refused_stops_nobody_and_answers_that_come_back_are_not_answered(
    run, scans, tmp_path
):
    port = free_port()
    with (
        Orthanc(tmp_path / "orthanc", port) as orthanc,
        Service(
            *(run, tmp_path, port, "ORTHANC@127.0.0.1", orthanc.node),
            *("--quiet_seconds", 1, "--most_mib", 2),
        ) as service,
    ):
        assert associate(port, title="STRANGER").is_rejected
        assert associate(port, called="ANOTHER").is_rejected
        large = another(scans[1])
        large.add_new((0x0011, 0x0010), "LO", "LARGE")
        large.add_new((0x0011, 0x1001), "OB", bytes(3 * 2**20))
        assert not orthanc.send([orthanc.upload(_bytes(large, tmp_path))])
        held = [associate(port) for _ in range(20)]
        assert sum(one.is_established for one in held) == 8
        silent = []
        for _ in range(100):
            with contextlib.suppress(OSError):
                silent.append(socket.create_connection(("127.0.0.1", port), timeout=5))
        for one in held:
            one.abort()
        for one in silent:
            one.close()
        name = orthanc.upload(scans[0].read_bytes())
        assert wait_for(lambda: orthanc.send([name]), 60)
        study = str(pydicom.dcmread(scans[0], stop_before_pixels=True).StudyInstanceUID)
        # Also in a state of its own: the marker comes after the answer.
        assert wait_for(lambda: list((service.state / "answered").glob("*/*.json")), 400)
        assert orthanc.answers() == {study: ONE_OF_EACH}
        # As a PACS that forwards all that it has; reports are refused, pictures dropped.
        for one in orthanc.get("instances"):
            orthanc.send([one])
        assert not wait_for(lambda: service.log().count(": answered") > 1, 8)
        assert service.stop() == 0
        assert orthanc.answers() == {study: ONE_OF_EACH}
    assert service.left() == {}


def test_pacs_and_service_speak_tls_and_who_does_not_is_refused(run, scans, certificates, tmp_path):
    port = free_port()
    theirs = {
        "DicomTlsEnabled": True,
        "DicomTlsRemoteCertificateRequired": True,
        "DicomTlsCertificate": str(certificates / "peer.pem"),
        "DicomTlsPrivateKey": str(certificates / "peer.key"),
        "DicomTlsTrustedCertificates": str(certificates / "ca.pem"),
        "DicomModalities": {
            "service": {"AET": "DSCINT", "Host": "127.0.0.1", "Port": port, "UseDicomTls": True}
        },
    }
    ours = (
        *("--tls_certificate", certificates / "service.pem"),
        *("--tls_key", certificates / "service.key", "--tls_ca", certificates / "ca.pem"),
    )
    with Orthanc(tmp_path / "orthanc", port, **theirs) as orthanc:
        node = f"{orthanc.node}/tls"
        words = ("ORTHANC@127.0.0.1", node, "--quiet_seconds", 1, *ours)
        with Service(run, tmp_path, port, *words) as service:
            assert not associate(port).is_established
            name = orthanc.upload(scans[0].read_bytes())
            assert wait_for(lambda: orthanc.send([name]), 60)
            assert wait_for(lambda: list((service.state / "answered").glob("*/*.json")), 400)
            study = str(pydicom.dcmread(scans[0], stop_before_pixels=True).StudyInstanceUID)
            assert orthanc.answers() == {study: ONE_OF_EACH}
            assert service.stop() == 0
        words = ("--workdir", run, "--no_pages", "--study", study, "--out", tmp_path / "out")
        done = _predict(*words, "--from_pacs", node, *ours)
        assert done.returncode == 0, done.stderr
        assert "1 file retrieved" in done.stdout
        done = _predict(*words[:-1], tmp_path / "none", "--from_pacs", orthanc.node)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
