"""The command lines: what does not fit is one line, before anything is written."""

import sys

import pytest
from pydicom import dcmread

from dscint_jax.pacs.address import Tls, read_address
from dscint_jax.pacs.client import Refused, Unreachable
from dscint_jax.pacs.queue import Queue
from dscint_jax.predict import __main__ as command
from dscint_jax.predict import serve
from tests.dscint_jax.pacs.orthanc import free_port
from tests.dscint_jax.pacs.service import Service, associate, wait_for
from tfds_builder.commandline.errors import UserError


def _words(run, folder, **options):
    given = {
        "workdir": run,
        "state": folder / "state",
        "peers": "PACS@127.0.0.1",
        "answer_to": "PACS@127.0.0.1:104",
        "port": free_port(),
        "bind": "127.0.0.1",
        **options,
    }
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def _refused(monkeypatch, main, words):
    monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
    with pytest.raises(UserError) as error:
        main()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"port": 0}, "--port 0"),
        ({"port": 70000}, "--port 70000"),
        ({"quiet_seconds": "nan"}, "--quiet_seconds nan"),
        ({"quiet_seconds": -1}, "--quiet_seconds -1"),
        ({"peers": "A,,B"}, "neither AET nor AET@host"),
        ({"answer_to": "PACS"}, "neither AET@host:port"),
        ({"answer_to": "http://a:b@pacs/dicom-web"}, "DICOMWEB_USER"),
        ({"ae_title": "A" * 17}, "no AE title"),
        ({"tls_key": "k.pem"}, "--tls_certificate"),
        ({"tls_certificate": "gone.pem"}, "gone.pem: no TLS"),
        ({"least_confidence": 2}, "no probability"),
        ({"most_mib": 0}, "no number from 1 on"),
    ],
)
def test_option_that_does_not_fit_is_one_line(run, tmp_path, monkeypatch, options, message):
    assert message in _refused(monkeypatch, serve.main, _words(run, tmp_path, **options))
    assert not (tmp_path / "state").exists()


def test_state_folder_in_use_run_that_is_none_and_port_that_is_taken_are_one_line(
    run, tmp_path, monkeypatch
):
    queue = Queue(tmp_path / "state")
    assert "in use by another service" in _refused(monkeypatch, serve.main, _words(run, tmp_path))
    queue.close()
    gone = _words(tmp_path / "gone", tmp_path)
    assert "config.json" in _refused(monkeypatch, serve.main, gone)
    unknown = _words(run, tmp_path, bind="192.0.2.1")
    assert "cannot be listened on" in _refused(monkeypatch, serve.main, unknown)


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "give images, or --from_pacs"),
        (["images", "--from_pacs", "PACS@h:104", "--study", "1.2.3"], "and not both"),
        (["--from_pacs", "PACS@h:104"], "takes no whole archive"),
        (["images", "--study", "1.2.3"], "name what --from_pacs retrieves"),
        (["images", "--study_date", "20260101"], "name what --from_pacs retrieves"),
        (["x", "--to_pacs", "PACS@h:104", "--deidentified"], "choose one"),
        (["--from_pacs", "PACS@h:104", "--study", "1.2.*"], "no StudyInstanceUID"),
        (["--from_pacs", "PACS@h:104", "--study_date", "2026"], "neither 20260101 nor"),
        (["--from_pacs", "PACS", "--study", "1.2.3"], "neither AET@host:port"),
        (["--from_pacs", "http://127.0.0.1:1/web", "--study", "1.2.3"], "no answer"),
    ],
)
def test_retrieval_that_does_not_fit_is_one_line(run, tmp_path, monkeypatch, words, message):
    own = ["--workdir", run, "--out", tmp_path / "out", *words]
    assert message in _refused(monkeypatch, command.main, own)
    assert not (tmp_path / "out").exists()


def test_certificate_that_cannot_be_read_is_told_before_studies_are_read(
    run, tmp_path, monkeypatch
):
    words = ["x", "--workdir", run, "--out", tmp_path / "out", "--to_pacs", "PACS@h:104/tls"]
    words += ["--tls_ca", tmp_path / "none.pem"]
    assert "no TLS with these files" in _refused(monkeypatch, command.main, words)
    assert not (tmp_path / "out").exists()


def test_results_of_the_other_studies_are_sent_where_one_is_refused(tmp_path, monkeypatch):
    sent = []

    def send(paths, *_):
        if "0001" in paths[0].name:
            raise Refused("PACS refused 2 of 2")
        if "0003" in paths[0].name:
            raise Unreachable("PACS did not answer")
        sent.extend(path.name for path in paths)

    monkeypatch.setattr("dscint_jax.pacs.send.send", send)
    for number in range(1, 5):
        for kind in ("report", "picture"):
            (tmp_path / f"study_000{number}_{kind}.dcm").touch()
    with pytest.raises(UserError, match=r"PACS refused 2 of 2; the results lie in"):
        command._send_results(tmp_path, read_address("PACS@h:104"), "DSCINT", Tls())
    assert sent == ["study_0002_report.dcm", "study_0002_picture.dcm"]


@pytest.mark.parametrize("wrong", ["workdir", "out"])
def test_pacs_is_asked_for_nothing_before_the_rest_is_known_to_be_right(
    run, tmp_path, monkeypatch, wrong
):
    monkeypatch.setattr("dscint_jax.pacs.retrieve.retrieve", lambda *_: pytest.fail("was asked"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    workdir = tmp_path / "gone" if wrong == "workdir" else run
    out = tmp_path / "full" if wrong == "out" else tmp_path / "out"
    words = ["--workdir", workdir, "--out", out, "--from_pacs", "PACS@h:104", "--study", "1.2.3"]
    assert {"workdir": "config.json", "out": "not empty"}[wrong] in _refused(
        monkeypatch, command.main, words
    )


@pytest.mark.slow
def test_answers_wait_for_a_pacs_that_is_not_there_and_the_service_stops_when_told(
    run, scans, tmp_path
):
    nobody = f"PACS@127.0.0.1:{free_port()}"
    port = free_port()
    with Service(run, tmp_path, port, "ORTHANC", nobody, "--quiet_seconds", 0) as service:
        association = associate(port)
        assert association.send_c_store(dcmread(scans[0])).Status == 0
        association.release()
        assert wait_for(lambda: "no connection; failed 2 times" in service.log(), 200)
        assert service.stop() == 0
    assert service.left() == {"sending": 1}
    assert service.log().splitlines()[-1].startswith("stopped; ")
