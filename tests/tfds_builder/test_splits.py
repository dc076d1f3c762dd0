import random
from collections import Counter
from dataclasses import replace

import pytest

from tfds_builder.errors import DataError
from tfds_builder.manifest import LABELS, SPLITS
from tfds_builder.splits import (
    Membership,
    assign_splits,
    patient_label,
    prove_disjoint,
    read_splits,
    splits_text,
)


def patients(count: int, seed: int = 3) -> dict[str, str]:
    draw = random.Random(seed)
    return {f"{draw.getrandbits(64):016x}": draw.choice(LABELS) for _ in range(count)}


def test_the_division_is_a_pure_function_of_pseudonyms_labels_and_seed():
    labels = patients(300)
    shuffled = list(labels.items())
    random.Random(1).shuffle(shuffled)
    assert assign_splits(labels, seed=5) == assign_splits(dict(shuffled), seed=5)
    assert assign_splits(labels, seed=5) != assign_splits(labels, seed=6)


@pytest.mark.parametrize("fractions", [(0.7, 0.15, 0.15), (0.5, 0.25, 0.25), (0.8, 0.0, 0.2)])
def test_every_class_is_divided_by_the_fractions(fractions):
    labels = patients(400)
    splits = assign_splits(labels, fractions=fractions)
    assert splits.keys() == labels.keys()
    for label in LABELS:
        own = [splits[patient] for patient in labels if labels[patient] == label]
        for split, fraction in zip(SPLITS, fractions, strict=True):
            assert abs(own.count(split) - fraction * len(own)) <= 1


@pytest.mark.parametrize("count", range(3, 12))
def test_a_small_class_is_in_every_split(count):
    splits = assign_splits({f"{n}": "normal" for n in range(count)})
    assert set(splits.values()) == set(SPLITS)
    assert Counter(splits.values()).most_common(1)[0][1] == list(splits.values()).count("train")


def test_known_patients_stay_where_they_are_when_others_come():
    labels = patients(200)
    first = dict(list(labels.items())[:120])
    before = assign_splits(first)
    after = assign_splits(labels, fixed=before)
    assert {patient: after[patient] for patient in first} == before
    assert abs(Counter(after.values())["test"] - 30) <= len(LABELS)


def test_given_splits_are_kept_even_against_the_fractions():
    labels = {f"{n}": "normal" for n in range(10)}
    given = {f"{n}": "test" for n in range(6)}
    splits = assign_splits(labels, fixed=given)
    assert [splits[patient] for patient in given] == ["test"] * 6


def test_a_patient_with_two_labels_counts_under_the_most_serious():
    assert patient_label(["normal", "arthritis"]) == "arthritis"
    assert patient_label(["arthritis", "metastasis", "thyroid_carcinoma"]) == "metastasis"


def members() -> list[Membership]:
    labels = patients(60)
    splits = assign_splits(labels)
    return [
        Membership(f"s-{patient}-{view}", f"s-{patient}", patient, labels[patient], splits[patient])
        for patient in labels
        for view in ("anterior", "posterior")
    ]


def test_the_proof_counts_what_there_is():
    everyone = members()
    proof = prove_disjoint(everyone)
    assert sum(found["images"] for found in proof["splits"].values()) == len(everyone)
    for split, found in proof["splits"].items():
        own = [m for m in everyone if m.split == split]
        assert found["patients"] == len({m.patient_key for m in own})
        assert found["images_by_class"] == {k: sum(m.label == k for m in own) for k in LABELS}
    assert all(
        shared == {"patients": 0, "studies": 0, "images": 0}
        for shared in proof["intersections"].values()
    )
    assert len(proof["intersections"]) == 3


@pytest.mark.parametrize("field", ["patient_key", "study_key", "image_id"])
def test_anything_shared_by_two_splits_is_refused(field):
    everyone = members()
    a = next(n for n, m in enumerate(everyone) if m.split == "train")
    b = next(n for n, m in enumerate(everyone) if m.split == "test")
    everyone[a] = replace(everyone[a], **{field: getattr(everyone[b], field)})
    with pytest.raises(DataError, match=r"share|twice"):
        prove_disjoint(everyone)


def test_the_file_reads_back(tmp_path):
    labels = patients(40)
    known = {p: (labels[p], split) for p, split in assign_splits(labels).items()}
    path = tmp_path / "splits.csv"
    path.write_text(splits_text(known))
    assert read_splits(path) == known
    assert read_splits(tmp_path / "none.csv") == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a,b\n",
        "patient_key,label,split\nx,normal\n",
        "patient_key,label,split\nx,sick,train\n",
        "patient_key,label,split\nx,normal,train\nx,normal,test\n",
    ],
)
def test_a_damaged_file_is_refused(tmp_path, text):
    path = tmp_path / "splits.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=r"splits\.csv: row"):
        read_splits(path)
