import numpy as np
import pytest

from dscint_jax import input_pipeline
from dscint_jax.errors import DscintError
from dscint_jax.experiment import load_images
from dscint_jax.input_pipeline import (
    evaluation_batches,
    index_batches,
    load_split,
    parts_of,
    sum_pool,
    training_batches,
)


def _load(data_dir, split="train", pool=16, cache_gib=1.0):
    return load_split(data_dir, split, pool=pool, cache_gib=cache_gib)


def test_sum_pool_keeps_every_count():
    counts = np.random.default_rng(0).integers(0, 65536, (32, 16, 1)).astype(np.uint16)
    pooled = sum_pool(counts, 8)
    assert pooled.shape == (4, 2, 1)
    assert pooled.sum() == counts.sum(dtype=np.int64)
    assert pooled[1, 0, 0] == counts[8:16, :8].sum(dtype=np.int64)


def test_every_epoch_holds_each_index_once_in_another_order():
    batches = index_batches(12, batch_size=4, seed=7)
    epochs = [np.concatenate([batches[3 * e + i] for i in range(3)]) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(12))
    assert len({epoch.tobytes() for epoch in epochs}) == 3


def test_order_is_a_function_of_seed_and_step_alone():
    first, again, other = (index_batches(50, batch_size=8, seed=seed) for seed in (3, 3, 4))
    steps = [17, 2, 9, 40]
    for step in steps:
        np.testing.assert_array_equal(first[step], again[step])
    assert any(not np.array_equal(first[step], other[step]) for step in steps)


def test_batches_resumed_at_any_step_are_those_of_an_undisturbed_run(data_dir):
    images = _load(data_dir)
    start = lambda step: training_batches(images, batch_size=8, seed=1, start=step)  # noqa: E731
    whole = start(0)
    undisturbed = [next(whole) for _ in range(7)]
    for step in range(7):
        for name, values in next(start(step)).items():
            np.testing.assert_array_equal(values, undisturbed[step][name], err_msg=name)


def test_memory_and_disk_give_the_same_batches(data_dir):
    indices = np.array([3, 0, 5])
    cached = _load(data_dir, cache_gib=1.0).read(indices)
    uncached = _load(data_dir, cache_gib=0.0).read(indices)
    assert cached.keys() == uncached.keys()
    for name, values in cached.items():
        np.testing.assert_array_equal(values, uncached[name], err_msg=name)


@pytest.mark.parametrize("batch_size", [3, 8, 1000])
def test_evaluation_sees_every_image_once_and_masks_the_padding(data_dir, batch_size):
    images = _load(data_dir)
    batches = list(evaluation_batches(images, batch_size=batch_size))
    assert {len(batch["label"]) for batch in batches} == {batch_size}
    assert sum(batch["mask"].sum() for batch in batches) == len(images)
    seen = np.concatenate([batch["image_id"][batch["mask"]] for batch in batches])
    assert len(set(seen)) == len(images)
    assert all((batch["scale"] > 0).all() for batch in batches)


def test_pooling_scales_with_the_block_so_that_brightness_stays(data_dir):
    fine, coarse = (_load(data_dir, pool=pool).read(np.arange(4)) for pool in (2, 16))
    assert fine["counts"].sum() == coarse["counts"].sum()
    mean = lambda batch: batch["counts"].mean((1, 2, 3)) / batch["scale"]  # noqa: E731
    np.testing.assert_allclose(mean(fine), mean(coarse), rtol=1e-5)


def test_class_counts_are_those_of_the_labels(data_dir):
    images = _load(data_dir)
    labels = images.read(np.arange(len(images)))["label"]
    assert tuple(np.bincount(labels, minlength=4)) == images.class_counts
    assert images.classes == ("normal", "metastasis", "arthritis", "thyroid_carcinoma")


def _load_fold(folds_dir, split, fold, cache_gib=1.0):
    return load_split(folds_dir, split, pool=1, cache_gib=cache_gib, fold=fold)


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
    config.data.update(dir=str(folds_dir), pool=1, fold=1)
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


def test_folds_are_counted_by_number_whatever_order_they_are_listed_in():
    names = sorted(f"fold_{n}" for n in range(12))
    assert parts_of("test", names, 9) == ("fold_9",)
    assert parts_of("validation", names, 9) == ("fold_10",)
    assert parts_of("validation", names, 11) == ("fold_0",)
    assert parts_of("train", names, 11) == tuple(f"fold_{n}" for n in range(1, 11))


def test_a_fold_that_does_not_fit_the_data_set_is_named(folds_dir, make_data_set):
    with pytest.raises(DscintError, match=r"divided into 5 folds.*--config\.data\.fold=0 \.\. 4"):
        _load_fold(folds_dir, "train", -1)
    with pytest.raises(DscintError, match=r"config\.data\.fold is 5; of 5 folds.*=0 \.\. 4"):
        _load_fold(folds_dir, "train", 5)
    with pytest.raises(DscintError, match=r"no split 'fold_0'.*train, validation, test"):
        _load_fold(folds_dir, "fold_0", 0)
    divided = make_data_set(train=4, validation=2, test=2)
    assert len(_load_fold(divided, "test", -1)) == 2
    with pytest.raises(DscintError, match=r"config\.data\.fold is 0.*--config\.data\.fold=-1"):
        _load_fold(divided, "test", 0)
    with pytest.raises(DscintError, match=r"2 folds, and 3 are needed"):
        _load_fold(make_data_set(fold_0=3, fold_1=3), "test", 0)


def _load_studies(studies_dir, split="train", pool=16, cache_gib=1.0):
    return load_split(studies_dir, split, pool=pool, cache_gib=cache_gib, records="studies")


def _whole(load, data_dir):
    splits = [load(data_dir, split) for split in ("train", "validation", "test")]
    parts = [images.read(np.arange(len(images))) for images in splits]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_sum_pool_sums_each_view_for_itself():
    counts = np.random.default_rng(1).integers(0, 65536, (2, 16, 8, 1)).astype(np.uint16)
    np.testing.assert_array_equal(sum_pool(counts, 4), [sum_pool(view, 4) for view in counts])


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


def test_studies_from_memory_and_disk_are_the_same(studies_dir):
    indices = np.array([3, 0, 5])
    cached, uncached = (_load_studies(studies_dir, cache_gib=g).read(indices) for g in (1.0, 0.0))
    for name, values in cached.items():
        np.testing.assert_array_equal(values, uncached[name], err_msg=name)


def test_evaluation_sees_every_study_once_and_pads_finite_pairs(studies_dir):
    images = _load_studies(studies_dir)
    batches = list(evaluation_batches(images, batch_size=8))
    seen = np.concatenate([batch["image_id"][batch["mask"]] for batch in batches])
    assert len(seen) == len(set(seen)) == len(images)
    assert {batch["counts"].shape for batch in batches} == {(8, 2, 64, 16, 1)}
    assert {batch["scale"].shape for batch in batches} == {(8, 2)}
    assert all((batch["scale"] > 0).all() for batch in batches)


def test_class_counts_of_studies_are_those_of_their_labels(studies_dir):
    images = _load_studies(studies_dir)
    labels = images.read(np.arange(len(images)))["label"]
    assert tuple(np.bincount(labels, minlength=4)) == images.class_counts
    assert images.noun == "studies"


def test_views_and_studies_are_data_sets_of_their_own(data_dir, studies_dir):
    with pytest.raises(DscintError, match=r"scintigraphy/studies; .* --config studies$"):
        input_pipeline.open_dataset(data_dir, "studies")
    with pytest.raises(DscintError, match=rf"scintigraphy/views; .* --data_dir {studies_dir}$"):
        input_pipeline.open_dataset(studies_dir)


def test_missing_data_set_is_named_with_the_command_that_builds_it(tmp_path):
    with pytest.raises(DscintError, match=rf"{tmp_path}.*tfds_builder\.build"):
        input_pipeline.open_dataset(tmp_path)


def test_unknown_split_pool_and_too_large_batch_are_named(data_dir):
    with pytest.raises(DscintError, match=r"no split 'tset'.*test"):
        _load(data_dir, split="tset")
    with pytest.raises(DscintError, match=r"pool 3 does not divide"):
        _load(data_dir, pool=3)
    with pytest.raises(DscintError, match=r"batch_size 999"):
        training_batches(_load(data_dir), batch_size=999, seed=0, start=0)
