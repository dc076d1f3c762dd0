"""Identities are planted wherever a file has room; nothing that is written or said repeats one."""

import base64
import io
import re
import shutil
import subprocess
import sys

import numpy as np
import pydicom
import pytest
from PIL import Image, PngImagePlugin
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dscint_jax.predict.predict import predict
from tfds_builder.commandline.errors import UserError

pytest.importorskip("highdicom", exc_type=ImportError)

SECRETS = {
    "PatientName": "Zanzibar^Quintilia",
    "PatientID": "ID7734512",
    "OtherPatientIDs": "OTHERID9931",
    "PatientBirthDate": "19470311",
    "PatientComments": "Comment on Quintilia",
    "PatientAddress": "Quince Lane 12",
    "AccessionNumber": "ACC5550123",
    "InstitutionName": "Xanadu Clinic",
    "InstitutionAddress": "Xanadu Road 8",
    "InstitutionalDepartmentName": "Xanadu Nuclear",
    "ReferringPhysicianName": "Yttrium^Doctor",
    "OperatorsName": "Jabberwock^Operator",
    "StudyDescription": "ANT bone scan of Quintilia",
    "SeriesDescription": "POST Xanadu series",
    "ProtocolName": "Xanadu protocol",
    "StationName": "XANADUCAM1",
    "DeviceSerialNumber": "SN88123987",
    "StudyID": "STUDY66123",
    "StudyDate": "20190807",
    "SeriesDate": "20190807",
    "AcquisitionDate": "20190807",
    "ContentDate": "20190807",
    "StudyTime": "081533.25",
    "ImageComments": "for Mrs Quintilia",
    "RequestedProcedureDescription": "Quintilia wants to know",
    "MedicalRecordLocator": "LOCATOR4412",
}
PARTS = (
    *("Quintilia", "Zanzibar", "Xanadu", "Yttrium", "Jabberwock", "Quince Lane"),
    *("1947-03-11", "11.03.1947", "2019-08-07", "07.08.2019", "7734512", "5550123"),
    *("PrivateTag1", "PrivateTag2", "NestedName", "OverlayName", "MetaTitle", "TrailingName"),
    *("IconName", "FolderName", "FileName", "PngText"),
)


def _planted(path, out, uids):
    """A file with an identity in every place that has room for one; its UIDs go to `uids`."""
    scan = pydicom.dcmread(path)
    for name, value in SECRETS.items():
        setattr(scan, name, value)
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
        setattr(scan, name, pydicom.uid.generate_uid())
        uids.append(str(scan[name].value))
    scan.file_meta.MediaStorageSOPInstanceUID = scan.SOPInstanceUID
    scan.file_meta.SourceApplicationEntityTitle = "MetaTitle"
    scan.preamble = b"MetaTitle Quintilia".ljust(128)
    block = scan.private_block(0x0071, "HOSPITAL XANADU", create=True)
    block.add_new(0x01, "LO", "PrivateTag1 Quintilia")
    block.add_new(0x02, "UN", b"PrivateTag2 Zanzibar")
    nested = Dataset()
    nested.PatientName, nested.RequestingPhysician = "NestedName^Quintilia", "NestedName"
    nested.RequestAttributesSequence = Sequence([Dataset()])
    nested.RequestAttributesSequence[0].ScheduledProcedureStepDescription = "NestedName Zanzibar"
    scan.RequestAttributesSequence = Sequence([nested])
    scan.add_new(0x60000010, "US", 32)
    scan.add_new(0x60000011, "US", 32)
    scan.add_new(0x60000022, "LO", "OverlayName Quintilia")
    scan.add_new(0x60000040, "CS", "G")
    scan.add_new(0x60000050, "SS", [1, 1])
    scan.add_new(0x60000100, "US", 1)
    scan.add_new(0x60000102, "US", 0)
    scan.add_new(0x60001500, "LO", "OverlayName Zanzibar")
    scan.add_new(0x60003000, "OW", b"OverlayName Quintilia".ljust(128))
    icon = Dataset()
    icon.PixelData = b"IconName Quintilia".ljust(64)
    icon["PixelData"].VR = "OB"
    scan.IconImageSequence = Sequence([icon])
    scan.DataSetTrailingPadding = b"TrailingName Quintilia"
    scan.save_as(out)


@pytest.fixture(scope="module")
def planted(cohort, tmp_path_factory):
    """A folder of planted files, and the UIDs that are in them."""
    folder = tmp_path_factory.mktemp("in") / "FolderName Quintilia"
    folder.mkdir()
    first, second, third, *_ = sorted((cohort / "images").iterdir())
    uids = []
    _planted(first, folder / "FileName Quintilia 1.dcm", uids)
    _planted(second, folder / "FileName Quintilia 2.dcm", uids)
    _planted(third, folder / "FileName Quintilia 3.dcm", uids)
    # A damaged one, one that is no image, one whose values are none of their types, and a picture.
    whole = (folder / "FileName Quintilia 2.dcm").read_bytes()
    (folder / "FileName Quintilia 4.dcm").write_bytes(whole[: len(whole) // 2])
    (folder / "FileName Quintilia 5.dcm").write_bytes(b"Quintilia is no image")
    for name in (b"19470311", b"081533.25 "):
        assert name in whole
    wrong = whole.replace(b"19470311", b"Zanzibar").replace(b"081533.25 ", b"Quintilia ")
    other = pydicom.uid.generate_uid()[:-1].encode()
    for uid in uids[4:8]:
        wrong = wrong.replace(uid.encode(), other[: len(uid)].ljust(len(uid), b"7"))
    (folder / "FileName Quintilia 6.dcm").write_bytes(wrong)
    body = np.zeros((1024, 256))
    body[100:900, 70:190] = 9
    pixels = np.minimum(np.random.default_rng(0).poisson(body), 255).astype(np.uint8)
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", "PngText Quintilia")
    Image.fromarray(pixels).save(folder / "FileName Quintilia anterior.png", pnginfo=text)
    return folder, uids


@pytest.fixture(scope="module")
def results(run, planted, tmp_path_factory):
    """What the command writes of the planted files, and what it says, warnings too."""
    out = tmp_path_factory.mktemp("results") / "out"
    places = ("--workdir", run, "--out", out, planted[0])
    words = [sys.executable, "-m", "dscint_jax.predict", "--deidentified", "--dicom", "--accept"]
    done = subprocess.run([*words, *places], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out, done.stdout + done.stderr


def _unpacked(content):
    """Some bytes, and what is packed into them: base64, and pictures with their texts."""
    yield content
    for text in re.findall(rb"[A-Za-z0-9+/=]{64,}", content):
        try:
            inner = base64.b64decode(text, validate=True)
        except ValueError:
            continue
        yield inner
        try:
            with Image.open(io.BytesIO(inner)) as picture:
                yield str(picture.info).encode()
                yield picture.tobytes()
        except OSError:
            continue


def test_no_identity_is_in_any_byte_that_is_written_or_said(results, planted):
    out, said = results
    secrets = {*SECRETS.values(), *PARTS, *planted[1]}
    secrets |= {part for value in SECRETS.values() for part in value.split("^")}
    paths = sorted(out.rglob("*"))
    assert {path.suffix for path in paths} == {".csv", ".html", ".dcm"}
    assert sum(path.suffix == ".dcm" for path in paths) >= 2 * 4
    pictures = 0
    for place, content in [*((path, path.read_bytes()) for path in paths), ("said", said.encode())]:
        for part in _unpacked(content):
            pictures += part[:4] in (b"\x89PNG", b"RIFF", b"\xff\xd8\xff\xe0")
            for secret in secrets:
                for spelling in (secret, secret.lower(), secret.upper()):
                    assert spelling.encode() not in part, (place, secret)
                    assert spelling.encode("utf-16-le") not in part, (place, secret)
    assert pictures
    for path in paths:
        assert not any(secret in path.name for secret in secrets)


def test_planted_identities_are_found_where_they_are_not_left_out(run, planted, tmp_path):
    predict([run], [min(planted[0].iterdir())], tmp_path / "out", dicom=True, pages=False)
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*.dcm"))
    for name in ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "StudyDate"):
        assert SECRETS[name].encode() in written
    assert planted[1][0].encode() in written


def test_deidentified_objects_say_so_and_belong_to_one_study(results):
    out, _ = results
    studies = set()
    for path in sorted(out.glob("*_report.dcm")):
        made = [pydicom.dcmread(p) for p in (path, out / path.name.replace("_report", "_picture"))]
        for dataset in made:
            assert dataset.PatientIdentityRemoved == "YES"
            assert "nothing of patient" in dataset.DeidentificationMethod
            assert not dataset.PatientName
            assert not dataset.PatientID
            assert not dataset.StudyDate
        assert "CurrentRequestedProcedureEvidenceSequence" not in made[0]
        assert made[0].StudyInstanceUID == made[1].StudyInstanceUID
        studies.add(made[0].StudyInstanceUID)
    assert len(studies) == len(list(out.glob("*_report.dcm")))


def test_uids_of_deidentified_objects_cannot_be_derived_from_the_files(
    results, run, planted, tmp_path
):
    out, _ = results
    options = {"deidentified": True, "dicom": True, "accept": True, "pages": False}
    predict([run], [min(planted[0].iterdir())], tmp_path / "again", **options)
    names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    for kind in ("report", "picture"):
        first, again = (
            pydicom.dcmread(folder / f"study_0001_{kind}.dcm")
            for folder in (out, tmp_path / "again")
        )
        assert all(first[name].value != again[name].value for name in names)


def test_validators_find_no_error_in_deidentified_objects(results):
    if not (shutil.which("dciodvfy") and shutil.which("dsrdump")):
        pytest.skip("needs dciodvfy (dicom3tools) and dsrdump (dcmtk)")
    for path in results[0].glob("*.dcm"):
        done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True)
        assert "Error" not in done.stdout + done.stderr
    for path in results[0].glob("*_report.dcm"):
        done = subprocess.run(["dsrdump", path], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_refusal_names_no_file_of_a_folder(run, planted, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no file that may be an image") as error:
        predict([run], [tmp_path / "empty"], tmp_path / "out", deidentified=True)
    assert "Quintilia" not in str(error.value)
