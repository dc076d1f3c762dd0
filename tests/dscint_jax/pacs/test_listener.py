"""The listener, asked over the loopback by who may, who may not, and who means harm."""

import contextlib
import dataclasses
import os
import resource
import shutil
import socket
import ssl
import struct
import threading
import time

import numpy as np
import pydicom
import pytest

from dscint_jax.pacs.address import Peer, Tls
from dscint_jax.pacs.listener import Limits, Listener
from dscint_jax.pacs.queue import Queue
from tests.dscint_jax.pacs.orthanc import free_port
from tests.dscint_jax.pacs.service import associate, wait_for
from tfds_builder.commandline.errors import UserError

PEERS = (Peer("ORTHANC", "127.0.0.1"), Peer("ELSEWHERE", "192.0.2.7"))
LIMITS = Limits(associations=3, instance_bytes=2 * 2**20, idle_seconds=2.0, free_bytes=1)
REPORT_CLASS = "1.2.840.10008.5.1.4.1.1.88.22"


@contextlib.contextmanager
def _listening(folder, peers=PEERS, limits=LIMITS, tls=None, free=None, bind="127.0.0.1"):
    queue = Queue(folder / "state")
    free = free or queue.free_bytes
    with Listener((bind, 0), "DSCINT", peers, queue.put, free, limits, tls) as listener:
        yield listener, queue
    queue.close()


@pytest.fixture
def listening(tmp_path):
    with _listening(tmp_path) as both:
        yield both


def _echoes(port, **options):
    association = associate(port, **options)
    if not association.is_established:
        return False
    status = association.send_c_echo().get("Status")
    association.release()
    return status == 0


def test_instance_is_on_disk_as_it_was_sent_when_the_sender_is_told_so(listening, scans):
    listener, queue = listening
    association = associate(listener.port)
    for n, path in enumerate(scans[:2]):
        sent = pydicom.dcmread(path)
        assert association.send_c_store(sent).Status == 0
        assert len(queue.received()) == n + 1
    association.release()
    held = [pydicom.dcmread(path) for path in queue.received()]
    found = next(one for one in held if one.SOPInstanceUID == sent.SOPInstanceUID)
    np.testing.assert_array_equal(found.pixel_array, sent.pixel_array)
    assert _echoes(listener.port)


@pytest.mark.parametrize(
    "options",
    [{"title": "STRANGER"}, {"called": "ANOTHER"}, {"title": "ELSEWHERE"}, {"title": "orthanc"}],
)
def test_unknown_title_or_host_is_refused(listening, options):
    listener, _ = listening
    association = associate(listener.port, **options)
    assert association.is_rejected
    assert _echoes(listener.port)


def test_host_where_no_peer_is_gets_no_answer(tmp_path):
    with _listening(tmp_path, peers=PEERS[1:]) as (listener, _):
        association = associate(listener.port, title="ELSEWHERE")
        assert association.is_aborted or not association.is_established
        assert not association.is_rejected


def test_peer_that_calls_a_listener_of_both_families_by_ipv4_is_known(tmp_path):
    if not socket.has_dualstack_ipv6():
        pytest.skip("needs IPv6")
    with _listening(tmp_path, bind="::") as (listener, _):
        assert _echoes(listener.port)
        assert associate(listener.port, title="ELSEWHERE").is_rejected


def test_reports_and_other_classes_are_not_taken(listening, scans):
    listener, queue = listening
    classes = ("1.2.840.10008.5.1.4.1.1.20", REPORT_CLASS, "1.2.840.10008.5.1.4.1.1.2")
    association = associate(listener.port, classes=classes)
    assert {str(one.abstract_syntax) for one in association.rejected_contexts} == set(classes[1:])
    association.release()
    assert not queue.received()


def test_instance_beyond_the_limit_is_cut_off_and_nothing_of_it_kept(listening, scans):
    listener, queue = listening
    large = pydicom.dcmread(scans[0])
    large.add_new((0x0011, 0x0010), "LO", "LARGE")
    large.add_new((0x0011, 0x1001), "OB", bytes(3 * 2**20))
    before = _kept(queue)
    association = associate(listener.port)
    assert association.send_c_store(large).get("Status") is None
    assert wait_for(lambda: not association.is_established, 5)
    assert _kept(queue) == before
    assert _echoes(listener.port)


def _kept(queue):
    return sorted(path for path in queue.root.rglob("*"))


def _request(title=b"ORTHANC", called=b"DSCINT"):
    """An A-ASSOCIATE-RQ for NM images, byte by byte."""

    def item(kind, content):
        return struct.pack(">BBH", kind, 0, len(content)) + content

    context = item(0x30, b"1.2.840.10008.5.1.4.1.1.20") + item(0x40, b"1.2.840.10008.1.2")
    user = item(0x51, struct.pack(">L", 0)) + item(0x52, b"1.2.3")
    body = struct.pack(">HH", 1, 0) + called.ljust(16) + title.ljust(16) + bytes(32)
    body += item(0x10, b"1.2.840.10008.3.1.1.1")
    body += item(0x20, b"\1\0\0\0" + context) + item(0x50, user)
    return struct.pack(">BBL", 1, 0, len(body)) + body


def _accepted(port):
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(_request())
    assert connection.recv(1) == b"\2"
    return connection


def _ended(connection, seconds=10.0):
    """Whether the other side closes the connection in time."""
    connection.settimeout(seconds)
    try:
        while connection.recv(2**16):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def test_peer_that_claims_four_gigabytes_is_cut_off_at_once(listening):
    listener, queue = listening
    before, memory = _kept(queue), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for connect in (_accepted, lambda port: socket.create_connection(("127.0.0.1", port))):
        with connect(listener.port) as connection:
            connection.sendall(struct.pack(">BBL", 4, 0, 2**32 - 1))
            with contextlib.suppress(OSError):
                connection.sendall(bytes(2**20))
            assert _ended(connection)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 50 * 2**10
    assert _kept(queue) == before
    assert _echoes(listener.port)


def test_peer_that_streams_without_an_end_is_cut_off_at_the_limit(listening):
    listener, queue = listening
    sent = 0
    with _accepted(listener.port) as connection:
        # Pieces of a command that never ends, each within the limit of a PDU.
        piece = struct.pack(">BBLLBB", 4, 0, 2**14 + 6, 2**14 + 2, 1, 1) + bytes(2**14)
        with contextlib.suppress(OSError):
            while sent < 2**32:
                connection.sendall(piece)
                sent += 2**14
        assert _ended(connection)
    # What the loopback's buffers hold comes on top.
    assert sent < LIMITS.instance_bytes + 16 * 2**20
    assert not queue.received()
    assert _echoes(listener.port)


@pytest.mark.parametrize(
    "beginning", [b"", b"\1\0", _request()[:40], b"\4\0\0\0\1\0ab"], ids=range(4)
)
def test_peer_that_falls_silent_is_let_go(listening, beginning):
    listener, _ = listening
    with socket.create_connection(("127.0.0.1", listener.port)) as connection:
        connection.sendall(beginning)
        assert _ended(connection, LIMITS.idle_seconds * 3)
    assert _echoes(listener.port)


@pytest.mark.parametrize(
    "beginning", [b"GET / HTTP/1.1\r\n\r\n", os.urandom(500), b"\1" + bytes(99)], ids=range(3)
)
def test_peer_that_speaks_something_else_is_let_go(listening, beginning):
    listener, queue = listening
    with socket.create_connection(("127.0.0.1", listener.port)) as connection:
        connection.sendall(beginning)
        assert _ended(connection, LIMITS.idle_seconds * 3)
    assert _echoes(listener.port)
    assert not queue.received()


def test_flood_of_associations_is_refused_and_the_next_one_is_served(listening):
    listener, _ = listening
    held = [associate(listener.port) for _ in range(12)]
    established = [one for one in held if one.is_established]
    assert len(established) == LIMITS.associations
    silent = []
    for _ in range(60):
        with contextlib.suppress(OSError):
            silent.append(socket.create_connection(("127.0.0.1", listener.port), timeout=5))
    most = LIMITS.associations * 4
    assert wait_for(lambda: len(listener._server.active_associations) <= most, 5)
    for one in established:
        one.release()
    for one in silent:
        one.close()
    assert wait_for(lambda: _echoes(listener.port), 20)
    assert threading.active_count() < 20


def test_full_disk_is_told_to_the_sender(tmp_path, scans):
    with _listening(tmp_path, free=lambda: 0) as (listener, queue):
        association = associate(listener.port)
        assert association.send_c_store(pydicom.dcmread(scans[0])).Status == 0xA700
        association.release()
        assert not queue.received()


def test_disk_that_refuses_is_told_to_the_sender(tmp_path, scans, monkeypatch):
    with _listening(tmp_path) as (listener, queue):
        shutil.rmtree(queue.root / "received")
        (queue.root / "received").write_text("no folder")
        association = associate(listener.port)
        assert association.send_c_store(pydicom.dcmread(scans[0])).Status == 0xA700
        association.release()


def test_open_associations_do_not_hold_up_the_end(tmp_path):
    with _listening(tmp_path) as (listener, _):
        association = associate(listener.port)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert wait_for(lambda: not association.is_established, 5)


def test_port_that_is_taken_is_one_line(tmp_path):
    with _listening(tmp_path) as (listener, queue):
        own = ("127.0.0.1", listener.port)
        with pytest.raises(UserError, match="cannot be listened on"):
            Listener(own, "DSCINT", PEERS, queue.put, queue.free_bytes, LIMITS)


def test_peer_whose_host_is_not_known_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"--peers: the host nowhere\.invalid"):
        Listener(
            ("127.0.0.1", free_port()),
            "DSCINT",
            [Peer("A", "nowhere.invalid")],
            lambda content: None,
            lambda: 1,
            LIMITS,
        )


def _tls(folder, name):
    return Tls(folder / f"{name}.pem", folder / f"{name}.key", folder / "ca.pem")


def test_tls_with_a_ca_takes_only_peers_that_show_its_certificate(certificates, tmp_path):
    server = _tls(certificates, "service").server()
    # A handshake that failed takes a place for a moment.
    limits = dataclasses.replace(LIMITS, associations=8)
    with _listening(tmp_path, tls=server, limits=limits) as (listener, _):
        peer = _tls(certificates, "peer").client()
        assert _echoes(listener.port, tls_args=(peer, "127.0.0.1"))
        stranger = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
        assert not _echoes(listener.port, tls_args=(stranger, "127.0.0.1"))
        stranger.load_cert_chain(certificates / "stranger.pem", certificates / "stranger.key")
        assert not _echoes(listener.port, tls_args=(stranger, "127.0.0.1"))
        assert not _echoes(listener.port)
        # One that does not shake hands stops no other.
        with socket.create_connection(("127.0.0.1", listener.port)):
            assert _echoes(listener.port, tls_args=(peer, "127.0.0.1"))
