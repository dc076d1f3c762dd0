import csv

import numpy as np
import pytest
from scipy import ndimage

from dscint_jax.explain.lesions import (
    ELSEWHERE,
    GROUPS,
    NECK,
    RING_MM,
    Lesion,
    LesionRecord,
    contrast,
    group_masks,
    lesion_records,
    lesions_of,
)
from dscint_jax.input_pipeline import load_split
from tests.dscint_jax.conftest import load_tiny_config

SPACING = 2.4


@pytest.fixture(scope="module")
def config(data_dir):
    return load_tiny_config().replaced({"data.dir": str(data_dir)})


def _record(seed=0):
    """Two round lesions in the first view, the smaller one at the edge, and none in the second."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:256, :64]
    mask = np.zeros((2, 256, 64), np.uint8)
    mask[0][np.hypot(rows - 150, columns - 30) <= 9] = 3
    mask[0][np.hypot(rows - 2, columns - 60) <= 5] = 7
    level = np.where(mask == 3, 80.0, np.where(mask == 7, 12.0, 10.0))
    return LesionRecord(random.poisson(level).astype(np.uint16), mask, np.array([SPACING, np.nan]))


def _contrast_by_pixels(counts, mask, number, pixel_mm):
    own = np.argwhere(mask == number)
    around = [
        counts[tuple(pixel)]
        for pixel in np.argwhere(mask == 0)
        if np.hypot(*(own - pixel).T).min() * pixel_mm <= RING_MM
    ]
    return np.mean([counts[tuple(pixel)] for pixel in own]) / np.mean(around)


def test_lesions_are_as_large_and_as_bright_as_they_are():
    record = _record()
    large, small = lesions_of(record, 4)
    assert (large.number, small.number, large.view, small.view) == (3, 7, 0, 0)
    assert large.diameter_mm == pytest.approx(2 * 9 * SPACING, rel=0.03)
    for lesion in (large, small):
        expected = _contrast_by_pixels(record.counts[0], record.mask[0], lesion.number, SPACING)
        assert lesion.contrast == pytest.approx(expected)
    assert large.contrast == pytest.approx(8, rel=0.1)
    area = (record.mask[0] == 7).sum() * SPACING**2
    assert small.diameter_mm == pytest.approx(np.sqrt(4 * area / np.pi))


def test_lesion_in_darkness_has_no_contrast_and_no_group_of_it():
    mask = np.zeros((40, 20), np.uint8)
    mask[10:14, 8:12] = 1
    counts = np.where(mask, 9, 0)
    assert np.isnan(contrast(counts, mask, 1, SPACING, np.s_[10:14, 8:12]))
    groups = Lesion(0, 1, 20.0, np.nan, NECK).groups
    assert groups == (("all", "all lesions"), ("site", NECK), ("size", "up to 20 mm"))
    groups = Lesion(0, 1, 20.1, 3.5, ELSEWHERE).groups
    assert groups[2:] == (("size", "20 to 25 mm"), ("contrast", "over 3"))
    assert set(groups) <= set(GROUPS)


def test_masks_of_groups_have_the_pixels_of_their_lesions_alone():
    record = _record()
    lesions = [Lesion(0, 3, 50.0, 8.0, ELSEWHERE), Lesion(0, 7, 20.0, 1.2, NECK)]
    together = [*group_masks(record, lesions)]
    assert len(together) == 3
    masks = {GROUPS[index]: mask for indices, mask in together for index in indices}
    np.testing.assert_array_equal(masks["all", "all lesions"], record.mask > 0)
    for group in (("site", ELSEWHERE), ("size", "over 25 mm"), ("contrast", "over 3")):
        np.testing.assert_array_equal(masks[group], record.mask == 3)
    np.testing.assert_array_equal(masks["site", NECK], record.mask == 7)
    assert ("size", "20 to 25 mm") not in masks


def test_pixel_size_is_needed_where_lesions_are():
    record = _record()
    assert record.measurable
    other = LesionRecord(record.counts, record.mask[::-1].copy(), record.pixel_mm)
    assert not other.measurable


def _quality(data_dir):
    (path,) = data_dir.glob("scintigraphy/views/*/quality.csv")
    with path.open(newline="") as file:
        return {row["image_id"]: row for row in csv.DictReader(file)}


def _table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_sites_and_contrasts_of_phantoms_agree_with_their_table(data_dir, cohort, config):
    images = load_split(data_dir, "train", pool=4, cache_gib=0.0)
    rows, manifest = _quality(data_dir), _table(cohort / "manifest.csv")
    known = {}
    for row in _table(cohort / "lesions.csv"):
        known[row["path"], int(row["number"])] = row
    keys, agree, pairs = images.keys(), [], []
    for n, record in enumerate(lesion_records(config, images)(np.arange(len(images)))):
        assert record.mask.any() <= (images.classes[keys["label"][n]] != "normal")
        # The header of the manifest is row 1.
        path = manifest[int(rows[keys["image_id"][n]]["row"]) - 2]["path"]
        for lesion in lesions_of(record, 4):
            row = known[path, lesion.number]
            thyroid = row["kind"] in ("thyroid", "node")
            # Vertebrae and joints of the neck lie there too.
            assert not thyroid or lesion.site == NECK
            agree.append((lesion.site == NECK) == thyroid)
            pairs.append((lesion.contrast, float(row[f"contrast_{keys['view'][n]}"])))
    assert len(agree) > 50
    assert np.mean(agree) > 0.95
    ranks = [np.argsort(np.argsort(values)) for values in zip(*pairs, strict=True)]
    assert np.corrcoef(*ranks)[0, 1] > 0.5


def test_records_are_those_of_the_split_in_its_order(data_dir, config):
    images = load_split(data_dir, "test", pool=16, cache_gib=0.0)
    indices = np.array([3, 0, 2])
    counts = images.read(indices)["counts"]
    for record, expected in zip(lesion_records(config, images)(indices), counts, strict=True):
        np.testing.assert_array_equal(record.pooled(16)[0], expected[..., 0])


def test_records_of_studies_have_both_views_and_a_missing_one_is_empty(studies_dir):
    config = load_tiny_config().replaced({"data.dir": str(studies_dir), "data.records": "studies"})
    images = load_split(studies_dir, "train", pool=4, cache_gib=0.0, records="studies")
    records = lesion_records(config, images)(np.arange(12))
    assert {record.mask.shape for record in records} == {(2, 1024, 256)}
    assert all(record.measurable for record in records)
    missing = [record for record in records if not record.counts.any((1, 2)).all()]
    assert missing
    for record in missing:
        empty = ~record.counts.any((1, 2))
        assert not record.mask[empty].any()
        assert np.isnan(record.pixel_mm[empty]).all()


def test_data_set_whose_records_tell_no_pixel_size_cannot_be_measured(make_data_set):
    folder = make_data_set(train=3)
    config = load_tiny_config().replaced({"data.dir": str(folder), "data.pool": 1})
    images = load_split(folder, "train", pool=1, cache_gib=0.0)
    record = lesion_records(config, images)(np.array([1]))[0]
    assert np.isnan(record.pixel_mm).all()
    mask = record.mask.copy()
    mask[0, 3, 4] = 1
    assert not LesionRecord(record.counts, mask, record.pixel_mm).measurable


def test_ring_reaches_as_far_as_it_is_said_to():
    mask = np.zeros((60, 60), np.uint8)
    mask[30, 30] = 1
    counts = np.zeros((60, 60), int)
    counts[30, 30] = 10
    distance = ndimage.distance_transform_edt(mask == 0) * SPACING
    counts[distance > RING_MM] = 1000
    counts[(distance > 0) & (distance <= RING_MM)] = 2
    assert contrast(counts, mask, 1, SPACING, ndimage.find_objects(mask)[0]) == 5
