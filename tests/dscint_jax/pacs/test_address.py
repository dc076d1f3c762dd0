import argparse
import importlib.metadata

import pytest

from dscint_jax.pacs.address import (
    Node,
    Peer,
    Tls,
    Web,
    check_pacs,
    read_address,
    read_dates,
    read_peers,
    read_study_uid,
    read_title,
)
from tfds_builder.commandline.errors import UserError


@pytest.mark.parametrize(
    "text, address",
    [
        ("PACS@10.0.0.5:4242", Node("PACS", "10.0.0.5", 4242)),
        ("MY PACS@pacs.hospital:104/tls", Node("MY PACS", "pacs.hospital", 104, True)),
        ("A@[::1]:104", Node("A", "::1", 104)),
        ("http://pacs:8042/dicom-web/", Web("http://pacs:8042/dicom-web")),
    ],
)
def test_address_is_a_node_or_a_url(text, address):
    assert read_address(text) == address


@pytest.mark.parametrize(
    "text, message",
    [
        ("PACS", "neither"),
        ("PACS@host", "neither"),
        ("PACS@host:0", "neither"),
        ("PACS@host:70000", "neither"),
        ("A TITLE THAT IS LONG@host:104", "neither"),
        ("https://anna:secret@pacs/dicom-web", "DICOMWEB_USER"),
        ("http:///dicom-web", "no URL"),
        ("http://pacs/dicom-web?token=secret", "no URL"),
    ],
)
def test_address_that_is_none_is_refused_without_its_password(text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message) as error:
        read_address(text)
    assert "anna" not in str(error.value)


def test_peers_have_a_host_where_one_is_given():
    found = read_peers("CAMERA, PACS@10.0.0.5,OTHER@pacs:4242")
    assert found == (Peer("CAMERA", None), Peer("PACS", "10.0.0.5"), Peer("OTHER", "pacs"))
    for text in ("", "A,,B", "A@", "TITLE\\ONE"):
        with pytest.raises(argparse.ArgumentTypeError):
            read_peers(text)


@pytest.mark.parametrize(
    "read, good, bad",
    [
        (read_title, "DSCINT", ["", " ", "A" * 17, "A@B"]),
        (read_study_uid, "1.2.840.1", ["1", "1.2.x", "1." * 40 + "1", "*"]),
        (read_dates, "20260101-20260131", ["2026", "20260101 -", "*"]),
    ],
)
def test_words_of_a_query_hold_no_wildcard(read, good, bad):
    assert read(good) == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError):
            read(text)


def test_tls_with_files_that_are_none_is_one_line(tmp_path):
    (tmp_path / "a.pem").write_text("no certificate")
    for tls in (Tls(tmp_path / "a.pem"), Tls(tmp_path / "gone.pem"), Tls(ca=tmp_path / "a.pem")):
        with pytest.raises(UserError, match="TLS") as error:
            tls.server()
        assert "\n" not in str(error.value)
    assert Tls().server() is None


def test_missing_package_is_named_with_what_installs_it(monkeypatch):
    version = importlib.metadata.version

    def without_pynetdicom(name):
        if name == "pynetdicom":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    check_pacs()
    monkeypatch.setattr(importlib.metadata, "version", without_pynetdicom)
    with pytest.raises(
        UserError, match=r"pynetdicom: pip install -c constraints\.txt '\.\[pacs\]'$"
    ):
        check_pacs()
