"""Which files are one study: by their headers, by names within a folder, each image once."""

import shutil

import numpy as np
import pydicom
import pytest
from PIL import Image

from dscint_jax.predict.studies import find_studies, worker_pool


@pytest.fixture(scope="module")
def pool():
    with worker_pool(1) as pool:
        yield pool


@pytest.fixture(scope="module")
def scans(cohort):
    return sorted((cohort / "images").iterdir())


def _picture(path):
    pixels = np.random.default_rng(len(str(path))).poisson(9, (1024, 256)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def _another(scan, path, **attributes):
    """The scan as another instance, with other attributes."""
    dataset = pydicom.dcmread(scan)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = (
        pydicom.uid.generate_uid()
    )
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.save_as(path)
    return path


def _names(found):
    return [[path.name for path in study.files] for study in found.studies]


@pytest.mark.parametrize("as_folders", [True, False])
def test_pictures_of_the_same_name_in_two_folders_are_two_patients(pool, tmp_path, as_folders):
    names = ["p17_anterior.png", "p17_posterior.png"]
    folders = [tmp_path / site for site in ("siteA", "siteB")]
    files = [_picture(folder / name) for folder in folders for name in names]
    found = find_studies(folders if as_folders else files, pool)
    assert [{path.parent for path in study.files} for study in found.studies] == [
        {folder} for folder in folders
    ]
    assert _names(found) == [names, names]


def test_files_of_one_study_uid_without_a_patient_are_one_study(pool, scans, tmp_path):
    for name in ("IM0001", "IM0002"):
        _another(scans[0], tmp_path / name, PatientID="")
    (study,) = find_studies([tmp_path], pool).studies
    assert len(study.files) == 2
    assert study.patient_id == ""
    (again,) = find_studies([*tmp_path.iterdir()], pool).studies
    assert {*again.files} == {*study.files}


def test_files_given_one_by_one_are_what_their_folder_is(pool, scans, tmp_path):
    _another(scans[0], tmp_path / "1.dcm", PatientID="")
    _another(scans[0], tmp_path / "2.dcm")
    _picture(tmp_path / "p17_anterior.png")
    _picture(tmp_path / "p17_posterior.png")
    as_folder = _names(find_studies([tmp_path], pool))
    assert len(as_folder) == 2
    assert _names(find_studies(sorted(tmp_path.iterdir()), pool)) == as_folder


def test_link_to_a_file_is_read_where_it_leads(pool, tmp_path):
    _picture(tmp_path / "store" / "scan.png")
    _picture(tmp_path / "store" / "link.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "store" / "scan.png")
    (study,) = find_studies([tmp_path / "link.png"], pool).studies
    assert study.files == (tmp_path / "store" / "scan.png",)


def test_two_patients_in_one_study_uid_stay_apart(pool, scans, tmp_path):
    for name in ("ANNA", "BERTA"):
        _another(scans[0], tmp_path / name, PatientID=name)
    assert _names(find_studies([tmp_path], pool)) == [["ANNA"], ["BERTA"]]


def test_file_that_is_given_twice_is_read_once(pool, scans, tmp_path, capsys):
    shutil.copy(scans[0], tmp_path / "1.dcm")
    _picture(tmp_path / "p17_anterior.png")
    found = find_studies([tmp_path, tmp_path / "1.dcm", tmp_path / "p17_anterior.png"], pool)
    assert _names(found) == [["1.dcm"], ["p17_anterior.png"]]
    assert not any(study.repeated for study in found.studies)
    assert "given twice; each is read once" in capsys.readouterr().out


def test_copy_of_an_image_is_left_out_and_named(pool, scans, tmp_path):
    for name in ("1.dcm", "copy of 1.dcm"):
        shutil.copy(scans[0], tmp_path / name)
    _another(scans[0], tmp_path / "2.dcm")
    (study,) = find_studies([tmp_path], pool).studies
    assert [path.name for path in study.files] == ["1.dcm", "2.dcm"]
    assert [row.path for row in study.rows] == [*study.files]
    assert [path.name for path in study.repeated] == ["copy of 1.dcm"]


def test_of_copies_the_one_that_was_not_cut_off_is_read(pool, scans, tmp_path):
    (tmp_path / "1.dcm").write_bytes(scans[0].read_bytes()[:-1000])
    shutil.copy(scans[0], tmp_path / "copy of 1.dcm")
    (study,) = find_studies([tmp_path], pool).studies
    assert [path.name for path in study.files] == ["copy of 1.dcm"]
    assert [path.name for path in study.repeated] == ["1.dcm"]
