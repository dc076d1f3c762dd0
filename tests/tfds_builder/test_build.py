import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tfds_builder import build, staging
from tfds_builder.commandline.errors import UserError
from tfds_builder.scintigraphy.scintigraphy_dataset_builder import Builder
from tfds_builder.splits.file import read_splits
from tfds_builder.studies.deidentify import pseudonym

FINAL = Path("scintigraphy", "views", "1.1.0")


def run(manifest: Path, data_dir: Path, *options: str) -> None:
    places = ["--manifest", str(manifest), "--data_dir", str(data_dir)]
    build.main([*places, "--workers", "1", *options])


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "tfds_builder.build", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)


def records(data_dir: Path, split: str) -> list[dict]:
    source = tfds.builder("scintigraphy/views", data_dir=data_dir).as_data_source(split)
    return [source[n] for n in range(len(source))]


def every_record(data_dir: Path) -> list[dict]:
    splits = tfds.builder("scintigraphy/views", data_dir=data_dir).info.splits
    return [record for split in splits for record in records(data_dir, split)]


def contents(data_dir: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(data_dir)): path.read_bytes()
        for path in sorted(data_dir.rglob("*"))
        if path.is_file()
    }


def test_nema_nm1_keeps_its_sum_of_counts_through_the_whole_build(
    nema_nm1, write_manifest, tmp_path
):
    shutil.copy(nema_nm1, tmp_path / "nm1.dcm")
    manifest = write_manifest(
        {"path": "nm1.dcm", "patient_id": "p", "label": "arthritis", "split": "test"}
    )
    run(manifest, tmp_path / "data")
    (record,) = records(tmp_path / "data", "test")
    assert int(record["image"].sum()) == 3_596_452
    assert (record["view"], record["label"]) == (0, 0)
    assert (record["manufacturer"], record["sex"], record["age_band"]) == (b"GE", b"M", b"unknown")
    assert record["pixel_spacing_mm"] == pytest.approx(2.26)
    assert not record["lesion_mask"].any()


def test_records_hold_counts_masks_and_scale(
    write_dicom, write_mask, write_manifest, tmp_path, draw_body
):
    counts = draw_body()
    masks = np.zeros((2, 1024, 256), np.uint8)
    masks[0, 10:20, 30:40], masks[1, 50:60, 70:80] = 1, 2
    write_dicom("a.dcm", counts=counts)
    write_mask("a.tif", masks)
    row = {"path": "a.dcm", "patient_id": "p", "label": "metastasis", "lesion_mask": "a.tif"}
    run(write_manifest(row | {"split": "train", "age": 64}), tmp_path / "data")
    anterior, posterior = records(tmp_path / "data", "train")
    for record, image, mask in zip((anterior, posterior), counts, masks, strict=True):
        assert record["image"].dtype == np.uint16
        np.testing.assert_array_equal(record["image"][..., 0], image)
        np.testing.assert_array_equal(record["lesion_mask"][..., 0], mask)
        pooled = image.reshape(256, 4, 64, 4).sum(axis=(1, 3)) / 16
        assert record["scale"] == pytest.approx(np.percentile(pooled[pooled > 0], 99))
        assert record["age_band"] == b"60-69"
        assert record["view_rule"] == b"coded view"
        assert record["notes"] == b""
    assert anterior["image_id"] == anterior["study_key"] + b"-anterior"
    assert posterior["image_id"] == posterior["study_key"] + b"-posterior"


def test_an_empty_image_can_still_be_divided_by_its_scale(write_dicom, write_manifest, tmp_path):
    write_dicom("a.dcm", counts=np.zeros((2, 1024, 256), np.uint16))
    row = {"path": "a.dcm", "patient_id": "p", "label": "normal", "split": "train"}
    run(write_manifest(row), tmp_path / "data")
    assert [record["scale"] for record in records(tmp_path / "data", "train")] == [1 / 16] * 2


def test_the_data_set_is_read_elsewhere_without_this_package_or_tensorflow(cohort, tmp_path):
    run(cohort(12), tmp_path / "data")
    program = f"""
import sys, json
import tensorflow_datasets as tfds
builder = tfds.builder("scintigraphy/views", data_dir={str(tmp_path / "data")!r})
source = tfds.data_source("scintigraphy/views", data_dir={str(tmp_path / "data")!r}, split="train")
assert "tensorflow" not in sys.modules and "tfds_builder" not in sys.modules
print(json.dumps([builder.info.features["label"].names, builder.info.features["view"].names,
    len(source), source[0]["image"].shape, builder.info.metadata["class_counts"]]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    labels, views, length, shape, class_counts = json.loads(done.stdout)
    assert labels == ["normal", "metastasis", "arthritis", "thyroid_carcinoma"]
    assert views == ["anterior", "posterior", "unknown"]
    assert shape == [1024, 256, 1]
    assert sum(class_counts["train"].values()) == length


def test_the_builder_works_under_tfds_alone(cohort, tmp_path):
    manifest = cohort(12)
    places = tfds.download.DownloadConfig(manual_dir=tmp_path)
    inside = tmp_path / "alone" / "manual"
    inside.mkdir(parents=True)
    shutil.copy(manifest, inside)
    builder = Builder(data_dir=tmp_path / "alone", config="views")
    with pytest.raises(UserError, match="keep the key elsewhere"):
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=inside)
        )
    Builder(data_dir=tmp_path / "alone", config="views").download_and_prepare(
        download_config=places
    )
    run(manifest, tmp_path / "data")
    assert (
        every_record(tmp_path / "alone")[5]["image_id"]
        == every_record(tmp_path / "data")[5]["image_id"]
    )
    assert read_splits(tmp_path / "alone" / "splits.csv") == read_splits(
        tmp_path / "data" / "splits.csv"
    )


def test_the_metadata_agrees_with_the_records(cohort, tmp_path):
    run(cohort(13), tmp_path / "data")
    info = tfds.builder("scintigraphy/views", data_dir=tmp_path / "data").info
    patients = {}
    for split in ("train", "validation", "test"):
        own = records(tmp_path / "data", split)
        names = [info.features["label"].int2str(record["label"]) for record in own]
        counted = info.metadata["class_counts"][split]
        assert counted == {label: names.count(label) for label in counted}
        ids = [record["image_id"] for record in own]
        assert ids == sorted(ids)
        patients[split] = {record["patient_key"] for record in own}
        assert info.metadata["split_proof"]["splits"][split]["patients"] == len(patients[split])
    assert sum(map(len, patients.values())) == len(set.union(*patients.values())) == 13
    assert info.metadata["view_rules"] == {"coded view": 26}


def test_the_same_input_gives_the_same_bytes_with_one_worker_or_two(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("tfds_builder.shards.plan.ROWS_PER_SHARD", 2)
    manifest = cohort(9)
    run(manifest, tmp_path / "one")
    run(manifest, tmp_path / "two", "--workers", "2")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    shards = list((tmp_path / "one" / FINAL).glob("*train.array_record*"))
    assert len(shards) > 1


def test_a_finished_build_is_recognised_without_decoding(cohort, tmp_path, capsys, monkeypatch):
    manifest = cohort(4)
    run(manifest, tmp_path / "data")
    before = contents(tmp_path / "data")
    decode = "tfds_builder.scintigraphy.conductor.ingest"
    monkeypatch.setattr(decode, lambda *_: pytest.fail("decoded"))
    run(manifest, tmp_path / "data")
    assert "already built" in capsys.readouterr().out
    assert contents(tmp_path / "data") == before


def test_other_sources_need_overwrite_and_known_patients_keep_their_split(cohort, tmp_path):
    data = tmp_path / "data"
    run(cohort(8), data)
    before, splits = contents(data), read_splits(data / "splits.csv")
    larger = cohort(12)
    with pytest.raises(UserError, match="--overwrite"):
        run(larger, data)
    assert contents(data) == before
    run(larger, data, "--overwrite", "--seed", "9")
    after = read_splits(data / "splits.csv")
    assert len(after) == 12
    assert {patient: after[patient] for patient in splits} == splits
    assert len(every_record(data)) == 24


def test_given_splits_are_honoured(write_dicom, write_manifest, tmp_path):
    rows = []
    for n, split in enumerate(("test", "test", "train", "validation", "test")):
        write_dicom(f"{n}.dcm", PatientID=f"H-{n}")
        rows.append({"path": f"{n}.dcm", "patient_id": n, "label": "normal", "split": split})
    run(write_manifest(*rows), tmp_path / "data")
    key = bytes.fromhex((tmp_path / "pseudonym.key").read_text())
    expected = {pseudonym(key, str(row["patient_id"])): row["split"] for row in rows}
    found = {
        patient: split
        for patient, (_, split) in read_splits(tmp_path / "data" / "splits.csv").items()
    }
    assert found == expected
    assert len(records(tmp_path / "data", "test")) == 6


def test_a_given_split_may_not_contradict_an_earlier_build(write_dicom, write_manifest, tmp_path):
    write_dicom("a.dcm")
    row = {"path": "a.dcm", "patient_id": "p", "label": "normal"}
    run(write_manifest(row | {"split": "test"}), tmp_path / "data")
    with pytest.raises(UserError, match=r"row 2: split 'train', but an earlier build .* 'test'"):
        run(write_manifest(row | {"split": "train"}), tmp_path / "data", "--overwrite")


def test_assumptions_are_counted_in_the_report_and_the_metadata(
    write_dicom, write_manifest, tmp_path, capsys
):
    write_dicom("a.dcm", views=(None, None))
    run(write_manifest({"path": "a.dcm", "patient_id": "p", "label": "normal"}), tmp_path / "data")
    metadata = tfds.builder("scintigraphy/views", data_dir=tmp_path / "data").info.metadata
    ((note, times),) = metadata["notes"].items()
    assert times == 2
    assert "detector order" in note
    assert f"note: {note} (2x)" in capsys.readouterr().out


def test_frames_and_views_from_the_manifest_become_images_of_one_study(
    write_dicom, write_manifest, tmp_path
):
    write_dicom("a.dcm", views=(None, None))
    both = {"path": "a.dcm", "patient_id": "p", "label": "normal", "study_id": "1", "split": "test"}
    rows = both | {"frame": 1, "view": "posterior"}, both | {"frame": 2, "view": "anterior"}
    run(write_manifest(*rows), tmp_path / "data")
    found = records(tmp_path / "data", "test")
    assert [record["view"] for record in found] == [0, 1]
    assert len({record["study_key"] for record in found}) == 1


def test_two_scans_of_one_study_get_identifiers_of_their_own(write_dicom, write_manifest, tmp_path):
    rows = []
    for name in ("a.dcm", "b.dcm"):
        write_dicom(name)
        row = {"path": name, "patient_id": "p", "label": "normal", "study_id": "1"}
        rows.append(row | {"split": "train"})
    run(write_manifest(*rows), tmp_path / "data")
    ids = [record["image_id"].decode() for record in records(tmp_path / "data", "train")]
    assert ids == sorted(ids)
    names = ["2-anterior", "2-posterior", "anterior", "posterior"]
    assert [name.split("-", 1)[1] for name in ids] == names


def test_records_are_in_the_order_of_their_identifiers_whatever_the_frame_order(
    write_dicom, write_mask, write_manifest, tmp_path, draw_body
):
    counts = draw_body()
    write_dicom("a.dcm", counts=counts, views=("posterior", "anterior"))
    masks = np.stack([np.full((1024, 256), n, np.uint8) for n in (1, 2)])
    write_mask("a.tif", masks)
    row = {"path": "a.dcm", "patient_id": "p", "label": "normal", "lesion_mask": "a.tif"}
    run(write_manifest(row | {"split": "train"}), tmp_path / "data")
    anterior, posterior = records(tmp_path / "data", "train")
    assert (anterior["view"], posterior["view"]) == (0, 1)
    np.testing.assert_array_equal(anterior["image"][..., 0], counts[1])
    assert np.unique(anterior["lesion_mask"]) == [2]
    assert np.unique(posterior["lesion_mask"]) == [1]


def test_a_mask_of_another_matrix_is_refused(write_dicom, write_mask, write_manifest, tmp_path):
    write_dicom("a.dcm")
    row = {"path": "a.dcm", "patient_id": "p", "label": "metastasis", "lesion_mask": "a.tif"}
    manifest = write_manifest(row)
    for shape, said in [
        ((2, 512, 128), "row 2: lesion mask has 512x128"),
        ((1, 1024, 256), "1 pages"),
    ]:
        write_mask("a.tif", np.zeros(shape, np.uint8))
        with pytest.raises(UserError, match=said):
            run(manifest, tmp_path / "data")
    (tmp_path / "a.tif").write_bytes(b"no tiff")
    with pytest.raises(UserError, match="TIFF"):
        run(manifest, tmp_path / "data")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_file_in_the_middle_ends_in_one_line_and_no_data_set(cohort, tmp_path, workers):
    manifest = cohort(6)
    bad = tmp_path / "scans" / "3.dcm"
    bad.write_bytes(bad.read_bytes()[:-1000])
    done = command("--manifest", manifest, "--data_dir", tmp_path / "data", "--workers", workers)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert "1 of 6 rows cannot be used" in done.stderr
    assert "row 5: holds" in done.stderr
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["quarantine.csv"]
    lines = (tmp_path / "data" / "quarantine.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["row", "5"]


def test_a_full_disk_ends_in_one_line_and_no_data_set(cohort, tmp_path):
    manifest = cohort(4)
    limit = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({2 * 10**5}, {2 * 10**5}));"
    )
    program = limit + "from tfds_builder import build; build.run_command(build.main)"
    options = ["--manifest", manifest, "--data_dir", tmp_path / "data", "--workers", "1"]
    done = subprocess.run(
        [sys.executable, "-c", program, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "disk full" in done.stderr
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize(
    "options, said",
    [
        ([], "required"),
        (["--manifest", "none.csv", "--data_dir", "d"], "no such file"),
        (["--manifest", "m", "--data_dir", "d", "--split_fractions", "1", "1", "0"], "add up to 1"),
        (["--manifest", "m", "--data_dir", "d", "--sed", "1"], "--sed"),
    ],
)
def test_wrong_options_are_one_line(options, said, capsys):
    with pytest.raises(SystemExit) as ended:
        build.run_command(lambda: build.main(options))
    stderr = capsys.readouterr().err
    assert ended.value.code == 2
    assert stderr.count("\n") == 1
    assert said in stderr


def test_a_killed_build_leaves_no_data_set_and_the_next_one_succeeds(cohort, tmp_path):
    manifest, data = cohort(40), tmp_path / "data"
    line = [sys.executable, "-m", "tfds_builder.build", "--manifest", manifest]
    started = subprocess.Popen([*line, "--data_dir", data, "--workers", "2"])
    deadline = time.monotonic() + 60
    while not list(data.rglob("*.array_record*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert not (data / FINAL).exists()
    (left,) = data.iterdir()
    assert left.name.startswith(".scintigraphy-being-built")
    assert left.stat().st_mode & 0o077 == 0
    run(manifest, data)
    assert sorted(path.name for path in data.iterdir()) == ["scintigraphy", "splits.csv"]
    assert len(every_record(data)) == 80


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again_it_is_complete(cohort, tmp_path):
    """Anew, and in place of a former data set; the moments are others in every run."""
    manifest, data = cohort(24), tmp_path / "data"
    line = [sys.executable, "-m", "tfds_builder.build", "--workers", "2", "--overwrite"]
    started = time.monotonic()
    subprocess.run([*line, "--manifest", manifest, "--data_dir", tmp_path / "whole"], check=True)
    seconds = time.monotonic() - started
    whole, whole_set = contents(tmp_path / "whole"), data_set(tmp_path / "whole")
    former = tmp_path / "former.csv"
    former.write_text("\n".join(manifest.read_text().splitlines()[:20]) + "\n")
    for attempt in range(4):
        shutil.rmtree(data, ignore_errors=True)
        former_set = {}
        if attempt % 2:
            run(former, data)
            former_set = data_set(data)
        killed = subprocess.Popen([*line, "--manifest", manifest, "--data_dir", data])
        time.sleep(random.SystemRandom().uniform(0.3, 1.0) * seconds)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        left = data_set(data)
        # Of splits.csv there may be the new one already: it holds the former one's splits too.
        assert left in ({}, former_set) or set(left) == set(whole_set)
        subprocess.run([*line, "--manifest", manifest, "--data_dir", data], check=True)
        assert {path.name for path in data.iterdir()} == {"scintigraphy", "splits.csv"}
        assert len(every_record(data)) == 48
        if not former_set:
            assert contents(data) == whole


def data_set(data_dir: Path) -> dict[str, bytes]:
    """What lies under the data set's final name."""
    return contents(data_dir / FINAL) if (data_dir / FINAL).exists() else {}


@pytest.mark.parametrize("failing", ["built", "replaced"])
def test_stopped_between_two_renames_no_data_set_is_lost(cohort, tmp_path, monkeypatch, failing):
    """The former data set is back, or the new one is there."""
    data = tmp_path / "data"
    run(cohort(4), data)
    before = data_set(data)
    larger = cohort(6)
    rename = Path.rename

    def stop(path: Path, target: Path) -> Path:
        if failing == "built" and Path(target) == data / FINAL:
            raise KeyboardInterrupt
        if failing == "replaced" and "replaced" in Path(target).parts:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as context:
        context.setattr(Path, "rename", stop)
        # Killed: nothing is put in order afterwards.
        context.setattr(staging, "_restore_replaced", lambda *_: None)
        context.setattr(staging.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            run(larger, data, "--overwrite")
    with pytest.raises(UserError, match="--overwrite"):
        run(larger, data)
    assert data_set(data) == before
    run(larger, data, "--overwrite")
    assert len(every_record(data)) == 12
    assert {path.name for path in data.iterdir()} == {"scintigraphy", "splits.csv"}


def workers_of(process_id: int) -> list[int]:
    """The worker processes of a build: grandchildren, by way of the fork server."""
    found = [process_id]
    for _ in range(2):
        lists = [Path(f"/proc/{n}/task/{n}/children").read_text().split() for n in found]
        found = [int(child) for children in lists for child in children]
    return found


def test_a_worker_that_is_killed_from_outside_costs_no_row(cohort, tmp_path):
    manifest, data = cohort(24), tmp_path / "data"
    run(manifest, tmp_path / "whole")
    line = [sys.executable, "-m", "tfds_builder.build", "--workers", "2"]
    built = subprocess.Popen([*line, "--manifest", manifest, "--data_dir", data])
    deadline = time.monotonic() + 60
    while not list(data.rglob("*.array_record*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    for worker in workers_of(built.pid)[:1]:
        os.kill(worker, signal.SIGKILL)
    assert built.wait() == 0
    assert contents(data) == contents(tmp_path / "whole")


def test_folds_divide_all_patients(cohort, tmp_path):
    run(cohort(40), tmp_path / "data", "--folds", "5")
    info = tfds.builder("scintigraphy/views", data_dir=tmp_path / "data").info
    assert list(info.splits) == [f"fold_{n}" for n in range(5)]
    proof = info.metadata["split_proof"]["splits"]
    assert [proof[f"fold_{n}"]["patients"] for n in range(5)] == [8] * 5
    for fold in proof.values():
        assert all(fold["patients_by_class"].values())
    with pytest.raises(UserError, match="5 folds"):
        run(tmp_path / "manifest.csv", tmp_path / "data", "--overwrite")


def test_sites_are_spread_over_the_splits_and_kept_as_pseudonyms(cohort, tmp_path):
    manifest = cohort(80)
    lines = manifest.read_text().splitlines()
    sites = ["site", *("North" if n % 5 else "South" for n in range(80))]
    manifest.write_text("\n".join(f"{a},{b}" for a, b in zip(lines, sites, strict=True)) + "\n")
    run(manifest, tmp_path / "data")
    proof = tfds.builder("scintigraphy/views", data_dir=tmp_path / "data").info.metadata[
        "split_proof"
    ]["splits"]
    by_site = {split: sorted(found["patients_by_site"].values()) for split, found in proof.items()}
    assert sum(sum(counts) for counts in by_site.values()) == 80
    for split, share in (("train", 0.7), ("validation", 0.15), ("test", 0.15)):
        few, many = by_site[split]
        assert few == pytest.approx(16 * share, abs=2)
        assert many == pytest.approx(64 * share, abs=2)
    keys = {record["site_key"] for record in every_record(tmp_path / "data")}
    assert len(keys) == 2
    assert all(len(key) == 16 for key in keys)


def test_a_second_build_in_the_same_folder_waits_its_turn(cohort, tmp_path):
    with staging.staging_folder(tmp_path / "data"), pytest.raises(UserError, match="another build"):
        run(cohort(3), tmp_path / "data")


def test_the_builder_imports_neither_a_trainer_nor_tensorflow():
    program = """
import sys
import tfds_builder.build
print(sorted({"jax", "flax", "dscint_jax", "tensorflow"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_tfds_builds_from_manual_dir(cohort, tmp_path):
    cohort(8)
    builder = Builder(data_dir=tmp_path / "data", config="views")
    config = tfds.download.DownloadConfig(manual_dir=tmp_path)
    builder.download_and_prepare(download_config=config)
    assert sum(split.num_examples for split in builder.info.splits.values()) == 16
    run(tmp_path / "manifest.csv", tmp_path / "other")
    for name, content in contents(tmp_path / "data").items():
        assert contents(tmp_path / "other")[name] == content


def test_options_of_beam_that_are_no_words_are_one_line(cohort, tmp_path):
    with pytest.raises(UserError, match=r"--beam_options 'x: no closing quotation; mend it"):
        run(cohort(4), tmp_path / "data", "--beam_runner", "DirectRunner", "--beam_options", "'x")
