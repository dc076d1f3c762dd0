import dataclasses
import io

import numpy as np
import pytest

from dscint_jax.input_pipeline import HeldImages, Scintigrams
from dscint_jax.input_pipeline.records import TEXTS
from dscint_jax.predict.familiarity import FEWEST_IMAGES, STRANGE, _read, measure
from tfds_builder.commandline.errors import UserError

SPACING = (2.2, 2.4)


def _bodies(count, seed):
    """Counts (count, 64, 16) of trunks and heads that stand and lie a little differently."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:64, :16]
    top, centre = random.uniform(4, 6, (2, count))[..., None, None]
    width = random.uniform(3.0, 3.6, count)[:, None, None]
    head = (rows - top - 3) ** 2 + (columns - centre - 2) ** 2 < 9
    wide = np.where(rows < top + 25, width, 0.3 * width)
    trunk = (np.abs(columns - centre - 2) < wide) & (rows > top + 6) & (rows < top + 50)
    level = random.uniform(20, 30, count)[:, None, None]
    return random.poisson(level * (0.05 + head + trunk)).astype(np.int32)


def _images(counts, patients=None):
    count = len(counts)
    names = np.arange(count) if patients is None else patients
    columns = {
        "counts": counts[..., None],
        "scale": np.full(count, 25.0, np.float32),
        "label": np.zeros(count, np.int32),
        "mask": np.ones(count, bool),
        **{name: np.array([f"{name}{n}" for n in names]) for name in TEXTS},
        "view": np.full(count, "anterior"),
    }
    return Scintigrams("validation", tuple("abcd"), (count, 0, 0, 0), "", HeldImages(columns))


def _remarks(known, counts, spacing=2.3):
    return known.remarks(_images(counts), np.full(len(counts), spacing))


@pytest.fixture(scope="module")
def known():
    return measure(_images(_bodies(200, seed=0)), SPACING)


def test_images_like_those_of_training_have_hardly_any_remark(known):
    found = _remarks(known, _bodies(300, seed=1))
    assert sum(map(bool, found)) <= 3


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c[:, ::-1],
        lambda c: np.repeat(c[:, :32], 2, axis=1),
        lambda c: np.roll(c, 5, axis=2),
        lambda c: np.random.default_rng(2).poisson(c.mean((1, 2), keepdims=True) + 0 * c),
        lambda c: c.max() - c,
    ],
    ids=["upside down", "half a body", "at the edge", "flood", "inverted"],
)
def test_image_of_another_outline_is_strange(known, change):
    found = _remarks(known, np.ascontiguousarray(change(_bodies(50, seed=1)), np.int32))
    assert np.mean([STRANGE in own for own in found]) > 0.95


def test_counts_and_pixels_out_of_range_are_named_with_the_range(known):
    few = np.random.default_rng(3).binomial(_bodies(5, seed=1), 0.2).astype(np.int32)
    for own in _remarks(known, few):
        assert any("counts; training has" in text for text in own)
    for own in _remarks(known, _bodies(5, seed=1), spacing=4.8):
        assert own == ["pixels of 4.80 mm; training has 2.20 to 2.40 mm"]
    assert not any(_remarks(known, _bodies(5, seed=1), spacing=np.nan))


def test_images_of_ones_own_patient_do_not_make_an_image_familiar():
    once = _bodies(FEWEST_IMAGES, seed=0)
    alone = measure(_images(once), SPACING)
    often = np.repeat(once, 6, axis=0)
    patients = np.repeat(np.arange(FEWEST_IMAGES), 6)
    assert measure(_images(often, patients), SPACING).limit > 0.5 * alone.limit
    assert measure(_images(often), SPACING).limit < 1e-6


@pytest.mark.parametrize("kept", [0, 100, -20])
def test_damaged_file_of_what_was_measured_is_to_be_deleted(known, tmp_path, kept):
    content = io.BytesIO()
    np.savez_compressed(content, **dataclasses.asdict(known))
    (tmp_path / "familiarity.npz").write_bytes(content.getvalue()[:kept])
    with pytest.raises(UserError, match=r"familiarity.npz cannot be read .*; delete it"):
        _read(tmp_path / "familiarity.npz")


def test_few_validation_images_are_no_measure_of_outlines():
    known = measure(_images(_bodies(FEWEST_IMAGES - 1, seed=0)), SPACING)
    assert not any(STRANGE in own for own in _remarks(known, _bodies(5, seed=1)[:, ::-1].copy()))
