"""Asks a PACS: an association, or a DICOMweb client; what goes wrong becomes one of two errors."""

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom.errors import InvalidDicomError
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association

from dscint_jax.pacs.address import Node, Tls, Web
from tfds_builder.commandline.errors import UserError

TIMEOUT_SECONDS = 30.0
MALFORMED = (ValueError, LookupError, AttributeError, TypeError)


class Unreachable(UserError):
    """The PACS did not answer: what else is for it may wait, too."""


class Refused(UserError):
    """The PACS answered, and did not do it."""


@contextlib.contextmanager
def associated(
    entity: ApplicationEntity, node: Node, tls: Tls, **options: Any
) -> Iterator[Association]:
    """A context with an association for the contexts of an entity.

    Options are those of `ApplicationEntity.associate`.

    Raises:
      Unreachable: nobody is there.
      Refused: the association was refused, as of an AE title that is not known there.
    """
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = TIMEOUT_SECONDS
    entity.connection_timeout = TIMEOUT_SECONDS
    if node.tls:
        options["tls_args"] = (tls.client(), node.host)
    try:
        association = entity.associate(node.host, node.port, ae_title=node.title, **options)
    except (OSError, RuntimeError) as error:
        raise Unreachable(f"{node}: no connection ({type(error).__name__})") from None
    try:
        if association.is_rejected:
            raise Refused(f"{node} refused the association; does it know {entity.ae_title}?")
        if not association.is_established:
            raise Unreachable(f"{node}: no connection")
        yield association
    except ValueError:
        raise Refused(f"{node} does not take or offer what it is asked for") from None
    except RuntimeError:
        raise Unreachable(f"{node} ended the association") from None
    finally:
        if association.is_established:
            association.release()


@contextlib.contextmanager
def web_client(web: Web) -> Iterator[DICOMwebClient]:
    """A context with a DICOMweb client; errors of HTTP are raised as `associated` raises them.

    Who asks stands in DICOMWEB_TOKEN, in DICOMWEB_USER and DICOMWEB_PASSWORD, or in netrc.
    """
    session = requests.Session()
    if token := os.environ.get("DICOMWEB_TOKEN"):
        session.auth = functools.partial(_with_token, token)
    elif user := os.environ.get("DICOMWEB_USER"):
        session.auth = (user, os.environ.get("DICOMWEB_PASSWORD", ""))
    client = DICOMwebClient(web.url, session=session, timeout=TIMEOUT_SECONDS)
    client.set_http_retry_params(retry=False)
    try:
        with session:
            yield client
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        kind = Unreachable if status >= 500 or status == 429 else Refused
        raise kind(f"{web} answered with HTTP status {status}") from None
    # Answers that are no JSON or no DICOM are ValueErrors or worse, of several libraries.
    except (requests.RequestException, InvalidDicomError, *MALFORMED) as error:
        raise Unreachable(f"{web}: no answer that can be used ({type(error).__name__})") from None


def _with_token(token: str, request: requests.PreparedRequest) -> requests.PreparedRequest:
    request.headers["Authorization"] = f"Bearer {token}"
    return request
