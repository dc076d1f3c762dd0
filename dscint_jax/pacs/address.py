"""Who is talked to: addresses as they are typed, peers that may send, certificates.

In: AET@host:port, AET@host:port/tls, or the URL of a DICOMweb service. Out: `Node` or `Web`.
"""

import argparse
import dataclasses
import re
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from tfds_builder.commandline.command import CommandParser, installed_version
from tfds_builder.commandline.errors import UserError, reason

PACKAGES = ("pynetdicom", "dicomweb-client", "highdicom")

TLS_OPTIONS = {
    "tls_certificate": "own certificate, PEM",
    "tls_key": "its key, PEM",
    "tls_ca": "certificates that are trusted, PEM",
}

_TITLE = r"(?P<title>[ -?A-\[\]-~]{1,16})"
_HOST = r"@(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)"
_NODE = re.compile(rf"{_TITLE}{_HOST}:(?P<port>\d{{1,5}})(?P<tls>/tls)?")
_PEER = re.compile(rf"{_TITLE}(?:{_HOST}(?::\d{{1,5}})?)?")


@dataclasses.dataclass(frozen=True)
class Node:
    """A DICOM service: its AE title, where it listens, and whether over TLS."""

    title: str
    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        return f"{self.title}@{self.host}:{self.port}"


@dataclasses.dataclass(frozen=True)
class Web:
    """A DICOMweb service, by the URL below which its studies lie."""

    url: str

    def __str__(self) -> str:
        return self.url


Address = Node | Web


@dataclasses.dataclass(frozen=True)
class Peer:
    """Who may send: an AE title, from one host, or from any where that is None."""

    title: str
    host: str | None


@dataclasses.dataclass(frozen=True)
class Tls:
    """Files in PEM form: the own certificate and its key, and whom to trust; None for none."""

    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    def server(self) -> ssl.SSLContext | None:
        """For a listener; None without a certificate. With a CA, peers have to show theirs.

        Raises:
          UserError: a file cannot be used, or one is missing.
        """
        if self.certificate is None:
            if self.key or self.ca:
                raise UserError("TLS needs --tls_certificate; give it, or leave the others out")
            return None
        context = self._loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        if self.ca:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client(self) -> ssl.SSLContext:
        """For what is asked; without a CA, those that the system trusts. Raises as `server`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca is None:
            context.load_default_certs()
        return self._loaded(context)

    def _loaded(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key)
            if self.ca:
                context.load_verify_locations(self.ca)
        except (OSError, ValueError) as error:
            names = " ".join(str(path) for path in (self.certificate, self.key, self.ca) if path)
            raise UserError(f"{names}: no TLS with these files ({reason(error)})") from None
        return context


def read_address(text: str) -> Address:
    """The type of an option that takes a DICOM or a DICOMweb service."""
    if text.startswith(("http://", "https://")):
        parts = urlsplit(text)
        if parts.username is not None or parts.password is not None:
            raise argparse.ArgumentTypeError(
                "a password does not belong on the command line; set DICOMWEB_USER and "
                "DICOMWEB_PASSWORD, or use netrc"
            )
        if not parts.hostname or parts.query or parts.fragment:
            raise argparse.ArgumentTypeError(f"'{text}' is no URL of a DICOMweb service")
        return Web(text.rstrip("/"))
    found = _NODE.fullmatch(text)
    if found is None or not 0 < int(found["port"]) < 2**16:
        raise argparse.ArgumentTypeError(
            f"'{text}' is neither AET@host:port nor the URL of a DICOMweb service"
        )
    return Node(
        found["title"].strip(), found["host"].strip("[]"), int(found["port"]), bool(found["tls"])
    )


def read_title(text: str) -> str:
    """The type of an option that takes an AE title."""
    if not re.fullmatch(_TITLE, text) or not text.strip():
        raise argparse.ArgumentTypeError(f"'{text}' is no AE title of 1 to 16 characters")
    return text.strip()


def read_peers(text: str) -> tuple[Peer, ...]:
    """The type of an option that takes AET, AET@host or AET@host:port, with commas between."""
    peers = []
    for one in text.split(","):
        found = _PEER.fullmatch(one.strip())
        if found is None or not found["title"].strip():
            raise argparse.ArgumentTypeError(f"'{one}' is neither AET nor AET@host")
        peers.append(Peer(found["title"].strip(), (found["host"] or "").strip("[]") or None))
    return tuple(peers)


def read_study_uid(text: str) -> str:
    """The type of an option that takes a StudyInstanceUID."""
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)+", text) or len(text) > 64:
        raise argparse.ArgumentTypeError(f"'{text}' is no StudyInstanceUID")
    return text


def read_dates(text: str) -> str:
    """The type of an option that takes a day or a range of days, as DICOM writes them."""
    if not re.fullmatch(r"\d{8}|\d{8}-\d{8}|\d{8}-|-\d{8}", text):
        raise argparse.ArgumentTypeError(f"'{text}' is neither 20260101 nor 20260101-20260131")
    return text


def add_own_options(parser: CommandParser) -> None:
    """Adds the options of who this side is: its AE title and its certificates."""
    parser.add_argument(
        "--ae_title", type=read_title, default="DSCINT", help="own AE title (default: DSCINT)"
    )
    for name, meaning in TLS_OPTIONS.items():
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=meaning)


def own_tls(arguments: argparse.Namespace) -> Tls:
    """The certificates of `add_own_options`."""
    return Tls(arguments.tls_certificate, arguments.tls_key, arguments.tls_ca)


def check_pacs() -> None:
    """Raises UserError where a package of the extra `pacs` is not installed."""
    for name in PACKAGES:
        if installed_version(name) is None:
            raise UserError(f"a PACS needs {name}: pip install -c constraints.txt '.[pacs]'")
