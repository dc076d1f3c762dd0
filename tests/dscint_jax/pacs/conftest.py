"""What takes answers in place of a PACS, and skips where the extra `pacs` is not installed."""

import shutil
import subprocess

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


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority, a service and a peer with certificates of it, and a stranger's own."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(command):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)

    new = "-newkey rsa:2048 -nodes"
    for name in ("ca", "stranger"):
        own = f"-subj /CN={name} -keyout {name}.key -out {name}.pem"
        openssl(f"req -x509 {new} -days 2 {own}")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("service", "peer"):
        openssl(f"req {new} -subj /CN={name} -keyout {name}.key -out {name}.csr")
        authority = "-CA ca.pem -CAkey ca.key -CAcreateserial -extfile names"
        openssl(f"x509 -req -in {name}.csr {authority} -days 2 -out {name}.pem")
    return folder
