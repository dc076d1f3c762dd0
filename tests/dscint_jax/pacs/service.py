"""The service as a user starts it, in a process of its own that tests kill and start again."""

import signal
import subprocess
import sys
import time

import pydicom
from pydicom.uid import generate_uid
from pynetdicom import AE, DEFAULT_TRANSFER_SYNTAXES

NUCLEAR = ("1.2.840.10008.5.1.4.1.1.20",)


class Service:
    """The command, its state folder, and what it prints.

    Args:
      workdir: a trained run.
      folder: for its state and its log.
      port: where it listens.
      peers, answer_to: as on the command line.
      extra: further words of the command line.
    """

    def __init__(self, workdir, folder, port, peers, answer_to, *extra):
        self.state, self._log, self.port = folder / "state", folder / "service.log", port
        self._words = [
            *(sys.executable, "-m", "dscint_jax.predict.serve", "--workdir", str(workdir)),
            *("--state", str(self.state), "--port", str(port), "--bind", "127.0.0.1"),
            *("--peers", peers, "--answer_to", answer_to, *map(str, extra)),
        ]

    def start(self, wait=True):
        heard = self.log().count("listens on port")
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._words, stdout=log, stderr=subprocess.STDOUT)
        if wait:
            assert wait_for(
                lambda: self.log().count("listens on port") > heard or self.process.poll(), 120
            ), self.log()
            assert self.process.poll() is None, self.log()
        return self

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        """Asks it to stop; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def log(self):
        return self._log.read_text() if self._log.exists() else ""

    def count(self, folder, pattern="*"):
        return len([path for path in (self.state / folder).glob(pattern) if path.name[0] != "."])

    def left(self):
        """What lies in the folders of the queue, but for what was answered."""
        names = ("received", "waiting", "reading", "sending", "aside")
        return {name: count for name in names if (count := self.count(name))}

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.kill()


def wait_for(condition, seconds):
    """Whether a condition came true in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.1)
    return False


def associate(port, title="ORTHANC", called="DSCINT", classes=NUCLEAR, syntax=None, **k):
    """An association with what listens there, for uncompressed images and C-ECHO."""
    entity = AE(title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
    entity.add_requested_context("1.2.840.10008.1.1")
    for uid in classes:
        entity.add_requested_context(uid, syntax or DEFAULT_TRANSFER_SYNTAXES)
    return entity.associate("127.0.0.1", port, ae_title=called, **k)


def another(path, **attributes):
    """A file of the same study with another SOPInstanceUID, or with other attributes."""
    dataset = pydicom.dcmread(path)
    dataset.SOPInstanceUID = generate_uid()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset
