"""Sending: what the other side says decides, and who is not there is told from who refuses."""

import http.server
import json
import threading

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from dscint_jax.pacs.address import Tls, Web, read_address
from dscint_jax.pacs.client import Refused, Unreachable
from dscint_jax.pacs.retrieve import retrieve
from dscint_jax.pacs.send import send
from dscint_jax.predict.incoming import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Pauses
from tests.dscint_jax.pacs.orthanc import PICTURE_CLASS, free_port
from tfds_builder.commandline.errors import UserError


@pytest.fixture
def files(tmp_path):
    """Two pictures of random pixels."""
    paths = []
    for n in range(2):
        one = pydicom.Dataset()
        one.SOPClassUID, one.SOPInstanceUID = PICTURE_CLASS, generate_uid()
        one.StudyInstanceUID = one.SeriesInstanceUID = "1.2.3"
        one.Rows = one.Columns = 8
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated = one.BitsStored = 8
        one.HighBit, one.PixelRepresentation = 7, 0
        one.PixelData = np.random.default_rng(n).integers(0, 255, 64, np.uint8).tobytes()
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        paths.append(tmp_path / f"{n}.dcm")
        one.save_as(paths[-1], enforce_file_format=True)
    return paths


def _send(files, target):
    send(files, read_address(target), "DSCINT", Tls())


def test_what_is_sent_arrives(files, sink):
    _send(files, sink.node)
    sent = [pydicom.dcmread(path) for path in files]
    assert [one.SOPInstanceUID for one in sink.received] == [one.SOPInstanceUID for one in sent]
    assert [one.PixelData for one in sink.received] == [one.PixelData for one in sent]


@pytest.mark.parametrize("status", [0xB000, 0xB007, 0x0111])
def test_warning_and_duplicate_mean_that_it_is_there(files, sink, status):
    sink.statuses = [status, status]
    _send(files, sink.node)


@pytest.mark.parametrize("status", [0xA700, 0xA900, 0xC000, 0x0122])
def test_failure_of_either_is_a_refusal_that_names_the_status(files, sink, status):
    sink.statuses = [0, status]
    with pytest.raises(Refused, match=f"0x{status:04X}"):
        _send(files, sink.node)


def test_what_follows_a_refusal_is_sent_all_the_same(files, sink):
    sink.statuses = [0xA700]
    with pytest.raises(Refused, match=r"refused 1 of 2.*0xA700"):
        _send(files, sink.node)
    assert [one.SOPInstanceUID for one in sink.received] == [
        pydicom.dcmread(files[1]).SOPInstanceUID
    ]


def test_class_that_is_not_taken_keeps_no_other_back(files, sink):
    first = pydicom.dcmread(files[0])
    first.SOPClassUID = first.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"
    first.save_as(files[0])
    with pytest.raises(Refused, match="does not take this class"):
        _send(files, sink.node)
    assert len(sink.received) == 1


def test_nobody_there_is_unreachable_and_a_stranger_is_refused(files, sink):
    with pytest.raises(Unreachable, match="no connection"):
        _send(files, f"SINK@127.0.0.1:{free_port()}")
    with pytest.raises(Unreachable):
        _send(files, "SINK@nowhere.invalid:104")
    sink._entity.require_calling_aet = ["ANOTHER"]
    with pytest.raises(Refused, match="does it know DSCINT"):
        _send(files, sink.node)


def test_class_that_is_not_taken_is_a_refusal(files, sink):
    sink._server.contexts = [
        one for one in sink._server.contexts if one.abstract_syntax != PICTURE_CLASS
    ]
    with pytest.raises((Refused, Unreachable)):
        _send(files, sink.node)


class _Web(http.server.BaseHTTPRequestHandler):
    """Answers every request alike, and notes who asked."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(self.headers.get("Authorization"))
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/dicom+json")
        body = json.dumps(self.server.body).encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.server.asked.append(self.headers.get("Authorization"))
        self.send_response(self.server.status)
        body = b"<html>no JSON</html>"
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def web():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Web)
    server.status, server.body, server.asked = 200, {}, []
    server.url = f"http://127.0.0.1:{server.server_port}/dicom-web"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def _failed(reason):
    return {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [reason]}}]}}


@pytest.mark.parametrize(
    "status, body, error",
    [
        (200, {}, None),
        (202, _failed(0x0111), None),
        (202, _failed(0xA700), Refused),
        (202, {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US"}}]}}, Refused),
        (202, {"00081198": {"vr": "SQ", "Value": [{}]}}, Refused),
        (403, {}, Refused),
        (404, {}, Refused),
        (503, {}, Unreachable),
        (200, ["no object"], Unreachable),
    ],
)
def test_what_a_web_service_says_decides(files, web, status, body, error):
    web.status, web.body = status, body
    if error is None:
        send(files, Web(web.url), "DSCINT", Tls())
    else:
        with pytest.raises(error) as raised:
            send(files, Web(web.url), "DSCINT", Tls())
        assert "\n" not in str(raised.value)


def test_who_asks_the_web_service_comes_from_the_environment(files, web, monkeypatch):
    monkeypatch.setenv("DICOMWEB_USER", "anna")
    monkeypatch.setenv("DICOMWEB_PASSWORD", "secret")
    send(files, Web(web.url), "DSCINT", Tls())
    monkeypatch.setenv("DICOMWEB_TOKEN", "abc")
    send(files, Web(web.url), "DSCINT", Tls())
    assert web.asked == ["Basic YW5uYTpzZWNyZXQ=", "Bearer abc"]


def test_who_asks_the_web_service_comes_from_netrc(files, web, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login anna password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    send(files, Web(web.url), "DSCINT", Tls())
    assert web.asked == ["Basic YW5uYTpzZWNyZXQ="]


def test_web_service_that_is_none_is_one_line(web, tmp_path):
    with pytest.raises(UserError, match="no answer that can be used") as error:
        retrieve(Web(web.url), ["1.2.3"], None, tmp_path, "DSCINT", Tls())
    assert "\n" not in str(error.value)


def test_pauses_grow_to_a_limit_and_end_with_a_success():
    now = [0.0]
    pauses = Pauses(lambda: now[0])
    found = [pauses.failed("PACS")[1] for _ in range(12)]
    assert found[:3] == [FIRST_PAUSE_SECONDS * factor for factor in (1, 2, 4)]
    assert found[-1] == LONGEST_PAUSE_SECONDS
    assert not pauses.over("PACS")
    assert pauses.over("another")
    now[0] = LONGEST_PAUSE_SECONDS
    assert pauses.over("PACS")
    pauses.succeeded("PACS")
    assert pauses.failed("PACS") == (1, FIRST_PAUSE_SECONDS)
