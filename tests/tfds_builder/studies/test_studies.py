"""The configuration `studies`: both views of a study in one record."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tfds_builder import build
from tfds_builder.commandline.errors import UserError


def run(manifest: Path, data_dir: Path, *options: str) -> None:
    places = ["--manifest", str(manifest), "--data_dir", str(data_dir), "--config", "studies"]
    build.main([*places, "--workers", "1", *options])


def records(data_dir: Path, split: str = "train") -> list[dict]:
    builder = tfds.builder("scintigraphy/studies", data_dir=data_dir)
    source = builder.as_data_source(split)
    return [source[n] for n in range(len(source))]


def row(name: str, study: str = "1", **cells: object) -> dict[str, object]:
    return {
        "path": name,
        "patient_id": "p",
        "label": "normal",
        "study_id": study,
        "split": "train",
        **cells,
    }


def test_a_record_holds_both_views_anterior_first(
    write_dicom, write_manifest, write_mask, draw_body, tmp_path
):
    counts = draw_body()
    write_dicom("a.dcm", counts=counts, views=("posterior", "anterior"))
    masks = np.stack([np.full((1024, 256), n, np.uint8) for n in (1, 2)])
    write_mask("a.tif", masks)
    run(write_manifest(row("a.dcm", lesion_mask="a.tif")), tmp_path / "data")
    (record,) = records(tmp_path / "data")
    assert record["image"].shape == (2, 1024, 256, 1)
    np.testing.assert_array_equal(record["image"][..., 0], counts[::-1])
    np.testing.assert_array_equal(record["lesion_mask"][:, 0, 0, 0], [2, 1])
    assert record["has_view"].tolist() == [True, True]
    assert record["view_rule"] == b"anterior: coded view; posterior: coded view"
    assert record["pixel_spacing_mm"].tolist() == pytest.approx([2.4, 2.4])
    assert (record["scale"] > 0).all()


def test_two_files_of_one_view_each_make_one_study(
    write_dicom, write_manifest, draw_body, tmp_path
):
    counts = draw_body()
    write_dicom("post.dcm", counts=counts[1:], views=("posterior",))
    write_dicom("ant.dcm", counts=counts[:1], views=("anterior",))
    run(write_manifest(row("post.dcm"), row("ant.dcm")), tmp_path / "data")
    (record,) = records(tmp_path / "data")
    np.testing.assert_array_equal(record["image"][..., 0], counts)


def test_a_study_has_the_most_serious_label_of_its_views_and_it_is_said(
    write_dicom, write_manifest, tmp_path, capsys
):
    write_dicom("a.dcm", views=("anterior",))
    write_dicom("b.dcm", views=("posterior",))
    rows = row("a.dcm", label="arthritis"), row("b.dcm", label="metastasis")
    run(write_manifest(*rows), tmp_path / "data")
    (record,) = records(tmp_path / "data")
    info = tfds.builder("scintigraphy/studies", data_dir=tmp_path / "data").info
    assert info.features["label"].int2str(record["label"]) == "metastasis"
    assert info.metadata["class_counts"]["train"]["metastasis"] == 1
    assert "views with different labels, the most serious taken (1x)" in capsys.readouterr().out


def test_studies_with_one_view_are_left_out_or_kept_and_counted(
    write_dicom, write_manifest, tmp_path, capsys
):
    write_dicom("a.dcm")
    write_dicom("b.dcm", views=("posterior",))
    write_dicom("c.dcm", views=(None,))
    manifest = write_manifest(row("a.dcm"), row("b.dcm", "2"), row("c.dcm", "3"))
    run(manifest, tmp_path / "dropped")
    assert len(records(tmp_path / "dropped")) == 1
    said = capsys.readouterr().out
    assert "1 studies, 0 of them with one view; 2 images in no study" in said
    run(manifest, tmp_path / "kept", "--one_view_studies", "keep")
    kept = records(tmp_path / "kept")
    assert sorted(record["has_view"].tolist() for record in kept) == [[False, True], [True, True]]
    lone = next(record for record in kept if not record["has_view"][0])
    assert not lone["image"][0].any()
    assert lone["image"][1].any()
    assert np.isnan(lone["pixel_spacing_mm"][0])
    assert lone["scale"][0] == 1
    assert "2 studies, 1 of them with one view; 1 images in no study" in capsys.readouterr().out


def test_two_scans_of_one_study_are_two_records(write_dicom, write_manifest, tmp_path):
    write_dicom("a.dcm")
    write_dicom("b.dcm")
    run(write_manifest(row("a.dcm"), row("b.dcm")), tmp_path / "data")
    names = [record["image_id"] for record in records(tmp_path / "data")]
    assert names == sorted(names)
    assert names[1] == names[0] + b"-2"


def test_views_of_one_file_and_of_two_files_are_two_scans_in_whatever_order(
    write_dicom, write_manifest, draw_body, tmp_path
):
    counts = draw_body(4)
    files = {
        "alone": (counts[:1], ("anterior",)),
        "both": (counts[1:3], ("anterior", "posterior")),
        "other": (counts[3:], ("posterior",)),
    }
    for n, order in enumerate(itertools.permutations(files)):
        names = [f"{n}{k}.dcm" for k in range(3)]
        for name, kind in zip(names, order, strict=True):
            write_dicom(name, counts=files[kind][0], views=files[kind][1])
        run(write_manifest(*map(row, names)), tmp_path / f"data{n}")
        found = records(tmp_path / f"data{n}")
        assert len({record["image_id"] for record in found}) == 2
        images = sorted(record["image"][..., 0].tobytes() for record in found)
        assert images == sorted([counts[[0, 3]].tobytes(), counts[1:3].tobytes()])


def test_views_of_several_files_are_paired_only_where_nothing_is_to_be_guessed(
    write_dicom, write_manifest, draw_body, tmp_path
):
    counts = draw_body(4)
    for n, view in enumerate(("anterior", "anterior", "posterior", "posterior")):
        write_dicom(f"{n}.dcm", counts=counts[n : n + 1], views=(view,))
    manifest = write_manifest(*(row(f"{n}.dcm") for n in range(4)))
    with pytest.raises(UserError, match="one_view_studies"):
        run(manifest, tmp_path / "many")
    run(manifest, tmp_path / "kept", "--one_view_studies", "keep")
    assert len({record["image_id"] for record in records(tmp_path / "kept")}) == 4
    # One of three files is damaged: the other two may or may not be one scan.
    (tmp_path / "0.dcm").write_bytes(b"no DICOM")
    manifest = write_manifest(*(row(f"{n}.dcm") for n in range(3)))
    with pytest.raises(UserError, match="one_view_studies"):
        run(manifest, tmp_path / "damaged", "--max_rejected", "0.5")


def test_frames_of_one_file_in_rows_of_their_own_are_one_study(
    write_dicom, write_manifest, draw_body, tmp_path
):
    counts = draw_body()
    write_dicom("a.dcm", counts=counts, views=(None, None))
    write_dicom("b.dcm")
    rows = [row("a.dcm", frame=1, view="posterior"), row("a.dcm", frame=2, view="anterior")]
    run(write_manifest(*rows, row("b.dcm")), tmp_path / "data")
    first, _ = records(tmp_path / "data")
    np.testing.assert_array_equal(first["image"][..., 0], counts[::-1])


def test_where_no_study_has_both_views_it_is_said_what_to_do(write_dicom, write_manifest, tmp_path):
    write_dicom("a.dcm", views=("anterior",))
    with pytest.raises(UserError, match="1 have no opposite view; --one_view_studies keep"):
        run(write_manifest(row("a.dcm")), tmp_path / "data")
    write_dicom("a.dcm", views=(None,))
    with pytest.raises(UserError, match=r"studies: 1 are of unknown view; fill in view$"):
        run(write_manifest(row("a.dcm")), tmp_path / "data", "--one_view_studies", "keep")


def test_images_left_out_are_listed_also_where_their_split_has_no_record(
    write_dicom, write_manifest, tmp_path, capsys
):
    write_dicom("a.dcm", PatientID="p")
    write_dicom("b.dcm", views=("anterior",), CountsAccumulated=5, PatientID="q")
    other = row("b.dcm") | {"patient_id": "q", "split": "test"}
    run(write_manifest(row("a.dcm"), other), tmp_path / "data")
    assert "1 images in no study" in capsys.readouterr().out
    (quality,) = (tmp_path / "data").rglob("quality.csv")
    lines = quality.read_text().splitlines()[1:]
    assert [line.partition(",")[0] for line in lines] == ["2", "2", "3"]
    info = tfds.builder("scintigraphy/studies", data_dir=tmp_path / "data").info
    assert info.metadata["images_left_out"] == 1
    with pytest.raises(UserError, match=r"--strict: 1 images .* row 3: counts disagree"):
        run(write_manifest(row("a.dcm"), other), tmp_path / "strict", "--strict")


def test_patients_have_the_same_split_in_both_configurations(cohort, tmp_path):
    manifest = cohort(12)
    places = ["--manifest", str(manifest), "--data_dir", str(tmp_path / "data")]
    build.main([*places, "--workers", "1"])
    run(manifest, tmp_path / "data", "--seed", "5")
    views = tfds.builder("scintigraphy/views", data_dir=tmp_path / "data")
    for split in ("train", "validation", "test"):
        source = views.as_data_source(split)
        patients = {source[n]["patient_key"] for n in range(len(source))}
        assert {r["patient_key"] for r in records(tmp_path / "data", split)} == patients
