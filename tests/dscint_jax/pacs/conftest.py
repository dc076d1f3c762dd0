"""What takes answers in place of a PACS, and skips where the extra `pacs` is not installed."""

import pytest

pytest.importorskip("pynetdicom")
pytest.importorskip("dicomweb_client")
pytest.importorskip("highdicom", exc_type=ImportError)

from pynetdicom import AE, evt

from tests.dscint_jax.pacs.orthanc import ONE_OF_EACH


class Sink:
    """A storage service on the loopback that keeps what it is sent, and says what it is told to.

    Attributes:
      received: data sets, in order.
      statuses: what it answers next; then 0.
      node: its address.
    """

    def __init__(self):
        self.received, self.statuses = [], []
        self._entity = AE("SINK")
        for uid in ONE_OF_EACH:
            self._entity.add_supported_context(uid)
        self._server = self._entity.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )
        self.node = f"SINK@127.0.0.1:{self._server.server_address[1]}"

    def _store(self, event):
        status = self.statuses.pop(0) if self.statuses else 0
        if not status:
            self.received.append(event.dataset)
        return status

    def stop(self):
        self._server.shutdown()


@pytest.fixture
def sink():
    sink = Sink()
    yield sink
    sink.stop()


@pytest.fixture(scope="module")
def scans(cohort):
    """The cohort's files."""
    return sorted((cohort / "images").iterdir())
