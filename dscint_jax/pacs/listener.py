"""A DICOM listener: takes instances by C-STORE, answers C-ECHO, refuses what it does not know.

In: who may send, limits, and where an instance is kept. Out: a server in threads of its own. What
is received is never parsed here: pynetdicom reads PDUs and commands, the data set stays bytes.
"""

import dataclasses
import functools
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from pynetdicom import _config, evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from dscint_jax.pacs.address import Peer
from tfds_builder.commandline.errors import UserError, reason
from tfds_builder.commandline.progress import say

VERIFICATION = "1.2.840.10008.1.1"
NUCLEAR = ("1.2.840.10008.5.1.4.1.1.20", "1.2.840.10008.5.1.4.1.1.5")
CAPTURES = tuple(f"1.2.840.10008.5.1.4.1.1.7{suffix}" for suffix in ("", ".2", ".3"))
CLASSES = (*NUCLEAR, *CAPTURES)
"""Storage classes in which whole-body scans come: NM, NM retired, Secondary Capture."""

SYNTAXES = tuple(
    f"1.2.840.10008.1.2{suffix}"
    for suffix in (
        *(".1", "", ".2", ".1.99", ".5"),
        *(".4.57", ".4.70", ".4.80", ".4.81", ".4.90", ".4.91", ".4.50", ".4.51"),
    )
)
"""Transfer syntaxes that the readers decode: uncompressed, deflated, RLE, JPEG of all kinds."""

SUCCESS, OUT_OF_RESOURCES = 0x0000, 0xA700
REFUSED_PERMANENTLY, BY_USER, CALLING_TITLE = 1, 1, 3
MOST_PDU_BYTES = 2**17
"""Of any PDU: 128 presentation contexts with all their transfer syntaxes take fewer."""

MOST_GREETING_SECONDS = 10.0
"""How long a connection may stand without an association: it takes the place of one."""

CONNECTIONS_AN_ASSOCIATION = 4
"""Connections for each association that may be: some are only being refused."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a peer may use up.

    Attributes:
      associations: at once.
      instance_bytes: of one instance.
      idle_seconds: without a word, or for one PDU.
      free_bytes: that have to stay free on the disk.
    """

    associations: int = 8
    instance_bytes: int = 128 * 2**20
    idle_seconds: float = 30.0
    free_bytes: int = 2**30


class Listener:
    """A context in which instances are received.

    Args:
      address: host and port to listen on; port 0 takes any.
      title: own AE title, by which it has to be called.
      peers: who may send.
      keep: puts an instance, as a DICOM file, on the disk; what it raises refuses the instance.
      free_bytes: tells the room on that disk.
      limits: what peers may use up.
      tls: of the listener; None for none.

    Attributes:
      port: where it listens.

    Raises:
      UserError: the address cannot be listened on, or a peer's host is not known.
    """

    def __init__(
        self,
        address: tuple[str, int],
        title: str,
        peers: Sequence[Peer],
        keep: Callable[[bytes], None],
        free_bytes: Callable[[], int],
        limits: Limits,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        be_silent()
        self._keep, self._free_bytes, self._limits = keep, free_bytes, limits
        self._peers = [(peer.title, _addresses(peer.host)) for peer in peers]
        entity = ApplicationEntity(title)
        entity.require_called_aet = True
        entity.require_calling_aet = [peer.title for peer in peers]
        entity.maximum_associations = limits.associations
        entity.maximum_pdu_size = MOST_PDU_BYTES // 2
        entity.acse_timeout = min(MOST_GREETING_SECONDS, limits.idle_seconds)
        entity.dimse_timeout = entity.network_timeout = limits.idle_seconds
        entity.add_supported_context(VERIFICATION)
        for uid in CLASSES:
            entity.add_supported_context(uid, list(SYNTAXES))
        try:
            self._server = entity.make_server(
                address,
                ssl_context=tls,
                evt_handlers=[(evt.EVT_REQUESTED, self._meet), (evt.EVT_C_STORE, self._store)],
                server_class=_Server,
                request_handler=_Handler,
                limits=limits,
                hosts=None
                if any(hosts is None for _, hosts in self._peers)
                else frozenset().union(*(hosts or () for _, hosts in self._peers)),
            )
        except OSError as error:
            raise UserError(f"port {address[1]}: cannot be listened on ({reason(error)})") from None
        entity._servers.append(self._server)
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> "Listener":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        for association in self._server.active_associations:
            association.abort()

    def _meet(self, event: Any) -> None:
        """Refuses a peer that calls from another host than its own; pynetdicom checks titles."""
        wanted, host = event.assoc.requestor.primitive, event.assoc.requestor.address
        title = str(wanted.calling_ae_title).strip()
        if not any(
            title == name and (hosts is None or host in hosts) for name, hosts in self._peers
        ):
            say(f"an association from {host} was refused: not one of --peers")
            event.assoc.acse.send_reject(REFUSED_PERMANENTLY, BY_USER, CALLING_TITLE)
            event.assoc.kill()

    def _store(self, event: Any) -> int:
        if self._free_bytes() < self._limits.free_bytes:
            say("an instance was refused: the disk is nearly full")
            return OUT_OF_RESOURCES
        try:
            self._keep(event.encoded_dataset())
        except UserError as error:
            say(f"an instance was refused: {error}")
            return OUT_OF_RESOURCES
        return SUCCESS


class _Server(ThreadedAssociationServer):
    """Closes connections that are too many, or from hosts where no peer is."""

    def __init__(
        self, *args: Any, limits: Limits, hosts: frozenset[str] | None, **options: Any
    ) -> None:
        self.limits, self._hosts = limits, hosts
        super().__init__(*args, **options)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Called with every connection, before a byte of it is read."""
        most = CONNECTIONS_AN_ASSOCIATION * self.limits.associations
        known = self._hosts is None or client_address[0] in self._hosts
        return known and len(self.active_associations) < most

    def get_request(self) -> tuple[socket.socket, Any]:
        """As pynetdicom's, but one peer's handshake, or its silence, stops no other."""
        assert self.socket is not None
        connection, (host, *rest) = self.socket.accept()
        # How IPv6 names a peer that calls by IPv4.
        address = (host.removeprefix("::ffff:"), *rest)
        connection.settimeout(self.limits.idle_seconds)
        if self.ssl_context:
            connection = self.ssl_context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """What fails in a connection ends it, and prints nothing."""


class _Handler(RequestHandler):
    """Gives an association a socket that keeps to the limits."""

    def _create_association(self) -> Any:
        association = super()._create_association()
        limits = getattr(self.server, "limits", Limits())
        connection: Any = association.dul.socket
        connection.recv = functools.partial(_receive, association, limits)
        return association


def _receive(association: Any, limits: Limits, size: int) -> bytearray:
    """Reads so many bytes: the head of a PDU, or what it says that it holds.

    Raises:
      OSError: a limit was exceeded; pynetdicom then ends the connection and forgets the instance.
    """
    message, held = association.dimse.message, size
    if message is not None:
        held += message.encoded_command_set.tell() + message.data_set.tell()
    # A peer that does not wait for answers would fill the memory, too.
    unanswered = association.dimse.msg_queue.qsize()
    if size > MOST_PDU_BYTES or held > limits.instance_bytes or unanswered > 1:
        say("a connection was cut off: it sent more than the limits allow")
        raise OSError("a limit was exceeded")
    connection, content = association.dul.socket.socket, bytearray()
    until = time.monotonic() + limits.idle_seconds
    while len(content) < size:
        if time.monotonic() > until:
            raise TimeoutError("a PDU took too long")
        found = connection.recv(min(size - len(content), 2**16))
        if not found:
            break
        content += found
    return content


def be_silent() -> None:
    """Has pynetdicom and pydicom print nothing: their messages hold names."""
    _config.LOG_HANDLER_LEVEL = "none"
    for name in ("pynetdicom", "pydicom", "dicomweb_client"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _addresses(host: str | None) -> frozenset[str] | None:
    """The addresses of a host; None for any."""
    if host is None:
        return None
    try:
        return frozenset(str(found[4][0]) for found in socket.getaddrinfo(host, None))
    except OSError as error:
        raise UserError(f"--peers: the host {host} is not known ({reason(error)})") from None
