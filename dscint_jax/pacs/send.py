"""Sends DICOM files to a PACS, by C-STORE or by STOW-RS.

In: files of this package, and where to. Out: nothing where the PACS took them all, an error else.
What is sent again has the same UIDs, so that a PACS keeps it once.
"""

from collections.abc import Sequence
from pathlib import Path

import pydicom
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.ae import ApplicationEntity

from dscint_jax.pacs.address import Address, Node, Tls, Web
from dscint_jax.pacs.client import Refused, Unreachable, associated, web_client
from dscint_jax.pacs.listener import be_silent

DUPLICATE = 0x0111
"""What some say of an instance that they have: it is there."""

WARNING = 0xB
"""First digit of a status: taken, but for an attribute."""


def send(paths: Sequence[Path], target: Address, title: str, tls: Tls) -> None:
    """Sends DICOM files, all of them, whatever becomes of one; `title` is the own AE title.

    Raises:
      Unreachable, Refused: not all of them were taken, as far as is known.
    """
    be_silent()
    datasets = [pydicom.dcmread(path) for path in paths]
    if isinstance(target, Web):
        _post(datasets, target)
    else:
        _store(datasets, target, title, tls)


def _store(datasets: Sequence[pydicom.Dataset], target: Node, title: str, tls: Tls) -> None:
    entity = ApplicationEntity(title)
    for uid in dict.fromkeys(str(one.SOPClassUID) for one in datasets):
        entity.add_requested_context(uid, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    refused = []
    with associated(entity, target, tls) as association:
        for dataset in datasets:
            name = dataset.SOPClassUID.name
            try:
                status = association.send_c_store(dataset).get("Status")
            except ValueError:
                # No presentation context of this class was accepted.
                refused.append(f"{name}: it does not take this class")
                continue
            if status is None:
                raise Unreachable(f"{target} did not answer")
            if status not in (0, DUPLICATE) and status >> 12 != WARNING:
                refused.append(f"{name}: status 0x{status:04X}")
    if refused:
        raise Refused(f"{target} refused {len(refused)} of {len(datasets)}; first {refused[0]}")


def _post(datasets: Sequence[pydicom.Dataset], target: Web) -> None:
    with web_client(target) as client:
        response = client.store_instances(datasets)
        # Some give no reason, or an empty one.
        reasons = [one.get("FailureReason") or 0 for one in response.get("FailedSOPSequence", [])]
        failed = [f"0x{int(reason):04X}" for reason in reasons if reason != DUPLICATE]
    if failed:
        raise Refused(f"{target} refused {len(failed)} of {len(datasets)}: {failed[0]}")
