import numpy as np
import pytest

from dscint_jax.config import Config
from dscint_jax.input_pipeline import Leakage, leakage_of, load_split
from dscint_jax.input_pipeline.protocol import copies_of, leakage_in_words, share_out, split_copies

SPLITS = ("train", "validation", "test")


def test_copies_are_split_70_15_15_class_by_class():
    labels = np.repeat([0, 1, 3], [50, 20, 5])
    parts = split_copies(labels, 8)
    numbers = np.concatenate([parts[split] for split in SPLITS])
    assert sorted(numbers) == list(range(75 * 8))
    for label, images in ((0, 50), (1, 20), (3, 5)):
        sizes = [int((labels[parts[split] // 8] == label).sum()) for split in SPLITS]
        assert sizes == list(share_out(images * 8).values())
        assert sizes[1] == sizes[2] == round(0.15 * images * 8)


def test_copies_of_one_image_fall_on_both_sides():
    parts = split_copies(np.repeat([0, 1], 30), 8)
    images = {split: set((numbers // 8).tolist()) for split, numbers in parts.items()}
    assert len(images["train"] & images["test"]) > 30
    assert len(images["validation"] & images["test"]) > 20


def test_runs_of_all_seeds_are_tested_on_the_same_copies(data_dir):
    config = Config(protocol="augmented")
    first, second = (
        load_split(data_dir, "test", pool=16, cache_gib=1.0, copies=copies_of(own)).keys()
        for own in (config, config.replaced({"seed": 1}))
    )
    np.testing.assert_array_equal(first["image_id"], second["image_id"])


def test_leakage_counts_what_the_identities_of_both_sides_tell(data_dir):
    copies = 3
    train, test = (
        load_split(data_dir, split, pool=16, cache_gib=1.0, copies=copies)
        for split in ("train", "test")
    )
    sides = [images.read(np.arange(len(images))) for images in (train, test)]
    known_images, known_patients = set(), set()
    for name, patient in zip(sides[0]["image_id"], sides[0]["patient_key"], strict=True):
        known_images.add(name.rpartition("#")[0])
        known_patients.add(patient)
    expected = Leakage(
        images=len(test),
        images_with_a_copy_in_training=sum(
            name.rpartition("#")[0] in known_images for name in sides[1]["image_id"]
        ),
        images_of_a_patient_in_training=sum(
            patient in known_patients for patient in sides[1]["patient_key"]
        ),
    )
    assert leakage_of(train.keys(), test.keys()) == expected
    assert 0 < expected.images_with_a_copy_in_training <= expected.images_of_a_patient_in_training
    assert expected.images_with_a_copy_in_training > len(test) / 2


def test_leakage_by_patient_is_none_and_of_training_itself_all(data_dir):
    train, test = (
        load_split(data_dir, split, pool=16, cache_gib=0.0).keys() for split in ("train", "test")
    )
    size = len(test["label"])
    assert leakage_of(train, test) == Leakage(size, 0, 0)
    assert leakage_of(test, test) == Leakage(size, size, size)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"split": "test", "protocol": "patient"}, "No patient of this split was in training"),
        ({"split": "train", "protocol": "patient"}, "trained on these very studies"),
        ({"split": "test", "protocol": "augmented"}, "4 have a copy of the same study in training"),
    ],
)
def test_leakage_is_told_in_words(options, words):
    assert words in leakage_in_words(Leakage(6, 4, 5), records="studies", **options)


def test_another_data_set_is_told_in_words():
    said = leakage_in_words(None, split="test", protocol="patient", records="views")
    assert "another data set" in said
