"""Retrieves studies from a PACS, by QIDO-RS and WADO-RS or by C-FIND and C-GET.

In: where from, and which studies. Out: the files of their nuclear-medicine series in a folder,
which predictions then read as any files.
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.presentation import build_role

from dscint_jax.pacs.address import Address, Node, Tls, Web
from dscint_jax.pacs.client import Refused, Unreachable, associated, web_client
from dscint_jax.pacs.listener import CLASSES, OUT_OF_RESOURCES, SUCCESS, SYNTAXES, be_silent
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import write_error

MODALITY = "NM"
"""Of the series that are retrieved: a study may hold CT, too, and our own answers."""

FIND, GET = UID("1.2.840.10008.5.1.4.1.2.2.1"), UID("1.2.840.10008.5.1.4.1.2.2.3")
"""The study root models of C-FIND and C-GET."""

PENDING = (0xFF00, 0xFF01)


def retrieve(
    source: Address,
    studies: Sequence[str],
    dates: str | None,
    folder: Path,
    title: str,
    tls: Tls,
) -> int:
    """Retrieves studies into a folder.

    Args:
      source: the PACS.
      studies: StudyInstanceUIDs; none for all of the dates.
      dates: StudyDate as DICOM matches it, 20260101 or 20260101-20260131; None for any.
      folder: that is there.
      title: own AE title.
      tls: certificates, where the source wants TLS.

    Returns:
      How many files there are now.

    Raises:
      Unreachable, Refused: the PACS did not give them all.
      UserError: it has none.
    """
    be_silent()
    days = {"StudyDate": dates} if dates else {}
    wanted = [{"StudyInstanceUID": uid} | days for uid in studies] or [days]
    numbers = itertools.count(1)

    def place() -> Path:
        return folder / f"{next(numbers):06d}.dcm"

    if isinstance(source, Web):
        _from_web(source, wanted, place)
    else:
        _from_node(source, wanted, place, title, tls)
    count = next(numbers) - 1
    if not count:
        raise UserError(f"{source} has no nuclear-medicine images of the studies asked for")
    return count


def _from_web(source: Web, wanted: Sequence[dict[str, str]], place: Callable[[], Path]) -> None:
    with web_client(source) as client:
        for filters in wanted:
            for study in _uids(client.search_for_studies, "0020000D", search_filters=filters):
                of_study = {"study_instance_uid": study, "search_filters": {"Modality": MODALITY}}
                for series in _uids(client.search_for_series, "0020000E", **of_study):
                    # As they were stored: what is sent anew might be compressed anew.
                    as_stored = (("application/dicom", "*"),)
                    for dataset in client.iter_series(study, series, media_types=as_stored):
                        dataset.save_as(place(), enforce_file_format=True)


def _uids(search: Callable[..., list[dict[str, dict]]], tag: str, **options: Any) -> list[str]:
    """The UIDs of all pages of a search; a page without a new one is the last."""
    found: dict[str, None] = {}
    while True:
        page = search(offset=len(found), **options)
        new = dict.fromkeys(one[tag]["Value"][0] for one in page)
        if new.keys() <= found.keys():
            return list(found)
        found |= new


def _from_node(
    source: Node, wanted: Sequence[dict[str, str]], place: Callable[[], Path], title: str, tls: Tls
) -> None:
    asking, getting = ApplicationEntity(title), ApplicationEntity(title)
    asking.add_requested_context(FIND)
    getting.add_requested_context(GET)
    for uid in CLASSES:
        getting.add_requested_context(uid, list(SYNTAXES))
    roles = [build_role(uid, scp_role=True) for uid in CLASSES]

    failures: list[UserError] = []

    def keep(event: Any) -> int:
        path = place()
        try:
            path.write_bytes(event.encoded_dataset())
        except OSError as error:
            failures.append(write_error(path, error))
            return OUT_OF_RESOURCES
        return SUCCESS

    found: list[dict[str, str]] = []
    with associated(asking, source, tls) as association:
        for filters in wanted:
            any_study = {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": "", **filters}
            for study in _found(association, source, any_study, "StudyInstanceUID"):
                of_study = {"QueryRetrieveLevel": "SERIES", "StudyInstanceUID": study}
                any_series = {**of_study, "SeriesInstanceUID": "", "Modality": MODALITY}
                series = _found(association, source, any_series, "SeriesInstanceUID")
                found += [{**of_study, "SeriesInstanceUID": one} for one in series]
    handlers = [(evt.EVT_C_STORE, keep)]
    with associated(getting, source, tls, ext_neg=roles, evt_handlers=handlers) as association:
        for one in found:
            # The files come over this association, to `keep`.
            for status, _ in association.send_c_get(_query(one), GET):
                if failures:
                    raise failures[0]
                _pending(source, status)
                if failed := status.get("NumberOfFailedSuboperations"):
                    raise Refused(f"{source} did not send {failed} images of a series")


def _found(association: Association, source: Node, query: dict[str, str], name: str) -> list[str]:
    """What C-FIND finds, the values of an attribute. All of it: one search at a time."""
    answers = association.send_c_find(_query(query), FIND)
    found = [one for status, one in answers if _pending(source, status)]
    return [str(one[name].value) for one in found if one and name in one]


def _query(attributes: dict[str, str]) -> Dataset:
    query = Dataset()
    for name, value in attributes.items():
        setattr(query, name, value)
    return query


def _pending(source: Node, status: Dataset) -> bool:
    """Whether more is to come; raises Unreachable or Refused where it ended badly."""
    if "Status" not in status:
        raise Unreachable(f"{source} did not answer")
    if status.Status not in (SUCCESS, *PENDING):
        raise Refused(f"{source} refused a search or a transfer: status 0x{status.Status:04X}")
    return status.Status in PENDING
