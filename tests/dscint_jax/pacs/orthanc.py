"""A real PACS for tests: Orthanc with its DICOMweb plugin, on the loopback, in its own folder."""

import collections
import json
import shutil
import socket
import subprocess
import time
from pathlib import Path

import requests

PLUGIN = "libOrthancDicomWeb.so"
PLUGIN_FOLDERS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc/plugins", "/usr/lib/orthanc")
EXECUTABLE = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
REPORT_CLASS, PICTURE_CLASS = "1.2.840.10008.5.1.4.1.1.88.22", "1.2.840.10008.5.1.4.1.1.7"
OURS = "For research use only"


def plugin():
    """The path of the DICOMweb plugin; None where Orthanc or it is not installed."""
    found = [path for folder in PLUGIN_FOLDERS for path in Path(folder).glob(f"{PLUGIN}*")]
    return min(found, default=None) if EXECUTABLE else None


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Orthanc:
    """A context with a running Orthanc, AE title ORTHANC, that knows the service as DSCINT.

    Args:
      folder: for its configuration and its files.
      service_port: where the service listens.
      options: further fields of its configuration.
    """

    def __init__(self, folder, service_port, **options):
        self.http, self.dicom = free_port(), free_port()
        self.url, self.web = (
            f"http://127.0.0.1:{self.http}",
            f"http://127.0.0.1:{self.http}/dicom-web",
        )
        self.node = f"ORTHANC@127.0.0.1:{self.dicom}"
        (folder / "files").mkdir(parents=True, exist_ok=True)
        self._log, self._path = folder / "orthanc.log", folder / "orthanc.json"
        config = {
            "StorageDirectory": str(folder / "files"),
            "Plugins": [str(plugin())],
            "HttpPort": self.http,
            "DicomPort": self.dicom,
            "DicomAet": "ORTHANC",
            "DicomCheckCalledAet": True,
            "DicomAlwaysAllowFind": True,
            "DicomAlwaysAllowGet": True,
            "AuthenticationEnabled": False,
            "DicomModalities": {"service": ["DSCINT", "127.0.0.1", service_port]},
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            **options,
        }
        self._path.write_text(json.dumps(config))

    def __enter__(self):
        with self._log.open("ab") as log:
            words = [EXECUTABLE, str(self._path)]
            self._process = subprocess.Popen(words, stdout=log, stderr=log)
        until = time.monotonic() + 60
        while time.monotonic() < until and self._process.poll() is None:
            try:
                requests.get(f"{self.url}/system", timeout=5)
                return self
            except requests.RequestException:
                time.sleep(0.1)
        self.__exit__()
        raise AssertionError(self._log.read_text())

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(30)

    def get(self, path):
        answer = requests.get(f"{self.url}/{path}", timeout=60)
        answer.raise_for_status()
        return answer.json()

    def upload(self, content):
        """Puts a file into Orthanc; the instance's name there."""
        answer = requests.post(f"{self.url}/instances", data=content, timeout=60)
        answer.raise_for_status()
        return answer.json()["ID"]

    def send(self, names):
        """Has Orthanc send instances to the service; whether all were taken."""
        body = {"Resources": list(names), "Synchronous": True, "Timeout": 60}
        answer = requests.post(f"{self.url}/modalities/service/store", json=body, timeout=600)
        return answer.ok and not answer.json().get("FailedInstancesCount")

    def answers(self):
        """StudyInstanceUID -> classes of the instances in it that are answers of ours."""
        found = collections.defaultdict(list)
        for series in self.get("series?expand"):
            if OURS in series["MainDicomTags"].get("SeriesDescription", ""):
                study = self.get(f"studies/{series['ParentStudy']}")["MainDicomTags"]
                for name in series["Instances"]:
                    metadata = self.get(f"instances/{name}/metadata?expand")
                    found[study["StudyInstanceUID"]].append(metadata["SopClassUid"])
        return {study: sorted(classes) for study, classes in found.items()}


ONE_OF_EACH = sorted([REPORT_CLASS, PICTURE_CLASS])
