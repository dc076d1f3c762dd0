from dataclasses import replace

import numpy as np
import pytest
from tensorflow_datasets.core import example_serializer

from tfds_builder.classes import classes_of
from tfds_builder.shards.records import CONFIGS, features, records_of, serialise
from tfds_builder.studies.study import Study, intensity_scale, read_study


@pytest.fixture
def reading(write_dicom, write_manifest, write_mask):
    from tfds_builder.manifest import read_manifest

    write_dicom("a.dcm")
    masks = np.zeros((2, 1024, 256), np.uint8)
    masks[1, 30:40, 50:60] = 3
    write_mask("a.tif", masks)
    row = {"path": "a.dcm", "patient_id": "p", "label": "arthritis", "lesion_mask": "a.tif"}
    rows = read_manifest(write_manifest(row))
    return read_study(Study("b" * 16, "a" * 16, "c" * 16, rows))


@pytest.mark.parametrize("config", CONFIGS)
def test_records_are_encoded_as_tfds_encodes_them(reading, config):
    classes = classes_of(["normal", "arthritis"])
    encoder = features(config)
    encoder["label"].names = list(classes.names)
    serializer = example_serializer.ExampleSerializer(encoder.get_serialized_info())
    for kept in (reading, replace(reading, images=reading.images[:1])):
        for record, _ in records_of(kept, config, keep_one_view=True, classes=classes):
            message = serializer.get_tf_example(encoder.encode_example(record))
            assert serialise(record, classes) == message.SerializeToString(deterministic=True)


def test_two_views_of_one_name_in_a_file_stay_alone(reading):
    anterior, posterior = reading.images

    def as_of(image, file, **facts):
        return replace(image, facts=replace(image.facts, file=file, **facts))

    twice = as_of(posterior, 1, view="anterior", image_id="second")
    images = (as_of(anterior, 1), twice, as_of(posterior, 2))
    found = records_of(
        replace(reading, images=images),
        "studies",
        keep_one_view=True,
        classes=classes_of(["normal", "arthritis"]),
    )
    assert sorted(len(own) for _, own in found) == [1, 1, 1]


@pytest.mark.parametrize("brightest", [3, 4000, 5000, 60000])
def test_the_scale_is_a_percentile_of_pooled_counts_however_bright(rng, brightest):
    counts = rng.integers(0, brightest, (1024, 256)).astype(np.uint16)
    counts[:300] = 0
    pooled = counts.astype(np.int64).reshape(256, 4, 64, 4).sum((1, 3)) / 16
    assert intensity_scale(counts) == pytest.approx(
        np.percentile(pooled[pooled > 0], 99), rel=1e-12
    )


def test_an_empty_image_has_the_scale_of_one_count_a_block():
    assert intensity_scale(np.zeros((1024, 256), np.uint16)) == 1 / 16
