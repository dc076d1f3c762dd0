import json
from pathlib import Path

import pytest

from dscint_jax.input_pipeline import open_dataset
from dscint_jax.report.data_flow import cohort_table, read_data_flow, split_table
from tfds_builder.commandline.errors import UserError

PROOF = {
    "splits": {
        "train": {"patients": 3, "studies": 4, "images": 8, "images_by_class": {"a": 8, "b": 0}},
        "test": {"patients": 1, "studies": 1, "images": 2, "images_by_class": {"a": 0, "b": 2}},
    },
    "intersections": {"train & test": {"patients": 0, "studies": 0, "images": 0}},
}
METADATA = {"class_counts": {}, "split_proof": PROOF, "images_left_out": 1, "sexes": {"F": 10}}


def _write(folder):
    quality = [
        "row,findings",
        "2,",
        "2,",
        "3,near copy of another image; few counts",
        "5,few counts",
    ]
    (folder / "quality.csv").write_text("\n".join(quality) + "\n")
    refused = ["4,too few rows", "6,no pixels", "7,no pixels"]
    (folder / "quarantine.csv").write_text("\n".join(["row,reason", *refused]) + "\n")


def test_rows_are_followed_from_the_manifest_to_the_splits(tmp_path):
    _write(tmp_path)
    flow = read_data_flow(tmp_path, METADATA)
    assert flow.rows == 6
    assert flow.refused == {"no pixels": 2, "too few rows": 1}
    assert flow.findings == {"few counts": 2, "near copy of another image": 1}
    assert [flow.total(kind) for kind in ("patients", "studies", "images")] == [4, 5, 10]
    assert split_table(flow).rows == (
        ("train", "3", "4", "8", "8", "0"),
        ("test", "1", "1", "2", "0", "2"),
        ("in both train and test", "0", "0", "0", "", ""),
    )
    assert cohort_table(flow).rows[:2] == (
        ("images by sex", "F: 10"),
        ("images by age", "not reported"),
    )


def test_rare_reasons_are_counted_together(tmp_path):
    _write(tmp_path)
    reasons = [f"{n},reason {min(n, 9)}" for n in range(2, 20)]
    (tmp_path / "quarantine.csv").write_text("\n".join(["row,reason", *reasons]) + "\n")
    flow = read_data_flow(tmp_path, METADATA)
    assert len(flow.refused) == 7
    assert flow.refused["reason 9"] == 11
    assert sum(flow.refused.values()) == 18


def test_what_a_data_set_does_not_tell_is_not_reported(make_data_set):
    builder = open_dataset(make_data_set(train=5, test=3))
    flow = read_data_flow(Path(builder.data_dir), builder.info.metadata)
    assert (flow.rows, flow.refused, flow.left_out, flow.shared) == (None,) * 4
    assert (flow.total("patients"), flow.total("images")) == (None, 8)
    table = split_table(flow)
    assert table.rows[0][1:4] == ("not reported", "not reported", "5")
    assert table.note == "What the splits share is not reported."


def test_file_that_is_no_text_is_named(tmp_path):
    _write(tmp_path)
    (tmp_path / "quality.csv").write_bytes(b"row,findings\n\xff\xfe")
    with pytest.raises(UserError, match=r"quality\.csv cannot be read"):
        read_data_flow(tmp_path, json.loads(json.dumps(METADATA)))
