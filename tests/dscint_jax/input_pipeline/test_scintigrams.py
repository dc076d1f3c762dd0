import math

import numpy as np
import pytest

from dscint_jax.config import Config
from dscint_jax.input_pipeline import (
    Accelerators,
    Sample,
    check_patients,
    evaluation_batches,
    load_split,
    sample_of,
    split_size,
)
from dscint_jax.input_pipeline.records import DiskImages
from dscint_jax.training.experiment import load_images
from tfds_builder.commandline.errors import UserError


def _load(data_dir, split="train", pool=16, cache_gib=1.0):
    return load_split(data_dir, split, pool=pool, cache_gib=cache_gib)


def _load_studies(studies_dir, split="train", pool=16, cache_gib=1.0):
    return load_split(studies_dir, split, pool=pool, cache_gib=cache_gib, records="studies")


def _load_fold(folds_dir, split, fold, cache_gib=1.0):
    return load_split(folds_dir, split, pool=1, cache_gib=cache_gib, fold=fold)


def test_class_counts_are_those_of_the_labels(data_dir):
    images = _load(data_dir)
    labels = images.read(np.arange(len(images)))["label"]
    assert tuple(np.bincount(labels, minlength=4)) == images.class_counts
    assert images.classes == ("normal", "metastasis", "arthritis", "thyroid_carcinoma")


@pytest.mark.parametrize("cache_gib", [0.0, 1.0])
@pytest.mark.parametrize("fold", range(5))
def test_one_fold_tests_the_next_validates_and_the_others_train(folds_dir, fold, cache_gib):
    seen = {}
    for split in ("train", "validation", "test"):
        images = _load_fold(folds_dir, split, fold, cache_gib)
        batch = images.read(np.arange(len(images)))
        seen[split] = batch["image_id"].tolist()
        assert images.split == split
        assert tuple(np.bincount(batch["label"], minlength=4)) == images.class_counts
    members = {n: [f"fold_{n}-{i}" for i in range(11 + n)] for n in range(5)}
    following = (fold + 1) % 5
    assert seen["test"] == members[fold]
    assert seen["validation"] == members[following]
    others = [n for n in range(5) if n not in (fold, following)]
    assert seen["train"] == [image for n in others for image in members[n]]


def test_training_reads_the_fold_that_the_config_names(config, folds_dir):
    config = config.replaced({"data.dir": str(folds_dir), "data.pool": 1, "data.fold": 1})
    assert len(load_images(config, "train")) == 11 + 14 + 15


def test_every_image_is_tested_once_over_all_folds(folds_dir):
    tested = np.concatenate(
        [
            batch["image_id"][batch["mask"]]
            for fold in range(5)
            for batch in evaluation_batches(_load_fold(folds_dir, "test", fold), batch_size=4)
        ]
    )
    assert len(tested) == len(set(tested)) == 11 + 12 + 13 + 14 + 15


def test_a_fold_that_does_not_fit_the_data_set_is_named(folds_dir, make_data_set):
    with pytest.raises(UserError, match=r"divided into 5 folds.*--config\.data\.fold=0 \.\. 4"):
        _load_fold(folds_dir, "train", -1)
    with pytest.raises(UserError, match=r"config\.data\.fold is 5; of 5 folds.*=0 \.\. 4"):
        _load_fold(folds_dir, "train", 5)
    with pytest.raises(UserError, match=r"no split 'fold_0'.*train, validation, test"):
        _load_fold(folds_dir, "fold_0", 0)
    divided = make_data_set(train=4, validation=2, test=2)
    assert len(_load_fold(divided, "test", -1)) == 2
    with pytest.raises(UserError, match=r"config\.data\.fold is 0.*--config\.data\.fold=-1"):
        _load_fold(divided, "test", 0)
    with pytest.raises(UserError, match=r"2 folds, and 3 are needed"):
        _load_fold(make_data_set(fold_0=3, fold_1=3), "test", 0)


def _whole(load, data_dir):
    splits = [load(data_dir, split) for split in ("train", "validation", "test")]
    parts = [images.read(np.arange(len(images))) for images in splits]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_study_holds_its_patients_views_the_anterior_first_and_zeros_for_a_missing_one(
    studies_dir, data_dir
):
    studies, views = _whole(_load_studies, studies_dir), _whole(_load, data_dir)
    images = {
        (patient, view, counts.tobytes()): scale
        for patient, view, counts, scale in zip(
            *(views[name] for name in ("patient_key", "view", "counts", "scale")), strict=True
        )
    }
    assert set(studies["view"]) == {"both", "anterior", "posterior"}
    assert studies["counts"].shape[1:] == (2, 64, 16, 1)
    for n, patient in enumerate(studies["patient_key"]):
        for side, view in enumerate(("anterior", "posterior")):
            counts, scale = studies["counts"][n, side], studies["scale"][n, side]
            if studies["view"][n] in ("both", view):
                assert scale == images[patient, view, counts.tobytes()]
            else:
                assert not counts.any()
                assert scale == 16**2


def test_class_counts_of_studies_are_those_of_their_labels(studies_dir):
    images = _load_studies(studies_dir)
    labels = images.read(np.arange(len(images)))["label"]
    assert tuple(np.bincount(labels, minlength=4)) == images.class_counts
    assert images.noun == "studies"


def test_unknown_split_and_pool_are_named(data_dir):
    with pytest.raises(UserError, match=r"no split 'tset'.*test"):
        _load(data_dir, split="tset")
    with pytest.raises(UserError, match=r"pool 3 does not divide"):
        _load(data_dir, pool=3)


SPLITS = ("train", "validation", "test")
COPIES = 5


def _load_copies(data_dir, split, copies=COPIES, cache_gib=1.0, **options):
    return load_split(data_dir, split, pool=1, cache_gib=cache_gib, copies=copies, **options)


def test_copies_of_all_images_are_split_and_each_copy_is_in_one_split(make_data_set):
    folder = make_data_set(train=20, validation=7, test=9)
    ids = []
    for split in SPLITS:
        images = _load_copies(folder, split)
        batch = images.read(np.arange(len(images)))
        ids += batch["image_id"].tolist()
        assert tuple(np.bincount(batch["label"], minlength=4)) == images.class_counts
        assert len(images) == split_size(folder, split, copies=COPIES)
    originals = [f"train-{n}" for n in range(20)]
    originals += [f"validation-{n}" for n in range(7)] + [f"test-{n}" for n in range(9)]
    assert sorted(ids) == sorted(f"{image}#{k}" for image in originals for k in range(5))


def test_copy_has_the_counts_of_its_image_and_a_number_that_tells_image_and_copy(make_data_set):
    folder = make_data_set(train=20, validation=7, test=9)
    originals = {}
    for split in SPLITS:
        images = load_split(folder, split, pool=1, cache_gib=1.0)
        batch = images.read(np.arange(len(images)))
        originals |= dict(zip(batch["image_id"], batch["counts"], strict=True))
    numbers = {}
    for split in SPLITS:
        images = _load_copies(folder, split)
        batch = images.read(np.arange(len(images)))
        assert batch["copy"].dtype == np.int32
        for name, counts, number in zip(
            *(batch[field] for field in ("image_id", "counts", "copy")), strict=True
        ):
            image, _, k = name.rpartition("#")
            np.testing.assert_array_equal(counts, originals[image])
            assert number == -1 if k == "0" else number % 5 == int(k)
            if k != "0":
                numbers.setdefault(number // 5, set()).add(image)
    assert all(len(images) == 1 for images in numbers.values())
    assert len(numbers) == 36


def test_copies_from_memory_and_disk_are_the_same(make_data_set):
    folder = make_data_set(train=20, validation=7, test=9)
    held, on_disk = (_load_copies(folder, "test", cache_gib=gib) for gib in (1.0, 0.0))
    indices = np.array([6, 0, 11])
    for name, values in held.read(indices).items():
        np.testing.assert_array_equal(values, on_disk.read(indices)[name], err_msg=name)


def test_splits_of_copies_share_their_images_in_memory(make_data_set):
    folder = make_data_set(train=20, validation=7, test=9)
    train = _load_copies(folder, "train")
    beside = _load_copies(folder, "validation", beside=train)
    assert beside.images is train.images
    alone = _load_copies(folder, "validation")
    indices = np.arange(len(alone))
    for name, values in alone.read(indices).items():
        np.testing.assert_array_equal(values, beside.read(indices)[name], err_msg=name)


def test_copies_of_a_data_set_in_folds_need_no_fold_and_refuse_one(folds_dir):
    sizes = [len(_load_copies(folds_dir, split)) for split in SPLITS]
    assert sum(sizes) == 5 * (11 + 12 + 13 + 14 + 15)
    with pytest.raises(UserError, match=r"config\.data\.fold is 2, but.*=-1"):
        _load_copies(folds_dir, "train", fold=2)
    with pytest.raises(UserError, match=r"no split 'fold_1'; copies have train"):
        _load_copies(folds_dir, "fold_1")


def _sampled(data_dir, share, seed=3):
    return load_split(data_dir, "train", pool=16, cache_gib=1.0, sample=Sample(share, seed))


def test_sample_has_whole_patients_of_every_class_and_is_part_of_a_larger_one(data_dir):
    everything = _load(data_dir, "train").keys()
    classes = dict(zip(everything["patient_key"], everything["label"], strict=True))
    earlier = set()
    for share in (0.1, 0.34, 1.0):
        images = _sampled(data_dir, share)
        keys = images.keys()
        patients = set(keys["patient_key"])
        assert len(images) == np.isin(everything["patient_key"], list(patients)).sum()
        assert len(images) == split_size(data_dir, "train", sample=Sample(share, 3))
        assert images.class_counts == tuple(np.bincount(keys["label"], minlength=4))
        for label in set(classes.values()):
            of_class = [name for name, own in classes.items() if own == label]
            assert len(patients & set(of_class)) == math.ceil(share * len(of_class))
        assert earlier <= patients
        earlier = patients
    assert set(_sampled(data_dir, 0.34, seed=4).keys()["patient_key"]) != set(
        _sampled(data_dir, 0.34).keys()["patient_key"]
    )


def test_sample_reads_the_images_that_its_keys_name(data_dir):
    images, everything = _sampled(data_dir, 0.34), _load(data_dir, "train")
    batch, whole = (some.read(np.arange(len(some))) for some in (images, everything))
    assert batch["image_id"].tolist() == images.keys()["image_id"].tolist()
    rows = [whole["image_id"].tolist().index(name) for name in batch["image_id"]]
    for name in whole:
        np.testing.assert_array_equal(batch[name], whole[name][rows], err_msg=name)


def test_sample_of_copies_is_refused_by_the_fields_names():
    config = Config().replaced({"protocol": "augmented", "data.training_share": 0.5})
    with pytest.raises(UserError, match=r"training_share.*protocol 'augmented'"):
        sample_of(config, "train")
    assert sample_of(config, "test") is None


def test_split_size_is_that_of_the_split(folds_dir, data_dir):
    assert split_size(folds_dir, "train", fold=1) == len(_load_fold(folds_dir, "train", 1))
    assert split_size(data_dir, "test") == len(_load(data_dir, "test"))


@pytest.mark.parametrize("cache_gib", [0.0, 1.0])
def test_patient_on_both_sides_is_refused_and_named(make_data_set, cache_gib):
    folder = make_data_set(shared=2, train=12, validation=6, test=6)
    training, other = (_load(folder, split, 1, cache_gib) for split in ("train", "validation"))
    with pytest.raises(UserError, match=r"patient patient-0 and 1 more .*validation.*in 2 of 6"):
        check_patients(training, other)
    folder = make_data_set(train=12, validation=6, test=6)
    check_patients(*(_load(folder, split, 1, cache_gib) for split in ("train", "validation")))


def test_views_of_one_patient_are_on_one_side(data_dir, studies_dir):
    for load, folder in ((_load, data_dir), (_load_studies, studies_dir)):
        check_patients(load(folder, "train"), load(folder, "test"))


def test_images_stay_on_the_disk_until_training_brings_them_to_the_devices(make_data_set):
    folder = make_data_set(train=12, validation=6, test=6)
    roomy = Accelerators(1, 2**30)
    images = load_split(folder, "train", pool=1, cache_gib=1.0, accelerators=roomy)
    assert images.placement.place == "device"
    assert isinstance(images.images, DiskImages)
    assert _load(folder, "train", 1).placement.place == "host"
    assert _load(folder, "train", 1, 0.0).placement.place == "none"
