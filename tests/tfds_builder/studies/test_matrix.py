import numpy as np
import pytest

from tfds_builder.commandline.errors import UserError
from tfds_builder.studies.matrix import fit_of


def counts_of(rng, rows, columns):
    return rng.poisson(3.0, (rows, columns)).astype(np.uint16)


def test_the_usual_matrix_is_left_alone(rng):
    native = counts_of(rng, 1024, 256)
    fit = fit_of(1024, 256)
    np.testing.assert_array_equal(fit.counts(native), native)
    assert fit.description == ""
    assert fit.spacing_factor == 1


def test_a_finer_matrix_is_sum_pooled_and_keeps_every_count(rng):
    native = counts_of(rng, 2048, 512)
    fit = fit_of(2048, 512)
    pooled = fit.counts(native)
    assert pooled.sum() == native.sum()
    assert pooled[5, 9] == native[10:12, 18:20].sum()
    assert fit.spacing_factor == 2
    assert "sum-pooled 2x2" in fit.description


def test_a_coarser_matrix_is_replicated_exactly(rng):
    native = counts_of(rng, 512, 128)
    fit = fit_of(512, 128)
    np.testing.assert_array_equal(fit.counts(native)[1::2, ::2], native)
    assert fit.spacing_factor == 0.5
    assert "replicated 2x2" in fit.description


def test_a_shorter_matrix_is_padded_about_its_centre(rng):
    native = counts_of(rng, 1000, 256)
    padded = fit_of(1000, 256).counts(native)
    np.testing.assert_array_equal(padded[12:1012], native)
    assert padded.sum() == native.sum()


def test_a_wider_matrix_is_cropped_about_its_centre(rng):
    native = counts_of(rng, 1024, 512)
    fit = fit_of(1024, 512)
    np.testing.assert_array_equal(fit.counts(native), native[:, 128:384])
    assert fit.crops
    assert "cropped" in fit.description


@pytest.mark.parametrize("rows, columns", [(1024, 256), (2048, 512), (512, 128), (1000, 300)])
def test_a_mask_keeps_its_lesion_numbers_and_stays_on_its_pixels(rng, rows, columns):
    fit = fit_of(rows, columns)
    mask = np.where(rng.random((rows, columns)) < 0.01, 3, 0).astype(np.uint8)
    fitted = fit.mask(mask)
    assert fitted.dtype == np.uint8
    np.testing.assert_array_equal(fitted > 0, fit.counts(mask.astype(np.uint16)) > 0)
    assert set(np.unique(fitted)) == {0, 3}


def test_pooled_counts_that_no_longer_fit_are_refused():
    with pytest.raises(UserError, match="80000 counts"):
        fit_of(2048, 512).counts(np.full((2048, 512), 20000, np.uint16))
