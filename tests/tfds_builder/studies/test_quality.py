import functools

import numpy as np
import pydicom
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from tfds_builder.studies import quality
from tfds_builder.studies.quality import assess

SPACING = 2.4
NAN = float("nan")


@functools.cache
def mean_of_a_scan(rows=1024, columns=256):
    """Expected counts: head, trunk with arms, legs, ribs, kidneys, bladder, background."""
    down, across = np.mgrid[0 : 1 : rows * 1j, -1 : 1 : columns * 1j]

    def ellipse(row, column, height, width):
        return ((down - row) / height) ** 2 + ((across - column) / width) ** 2 < 1

    mean = 5.0 * ellipse(0.2, 0, 0.05, 0.25)
    mean += 5.0 * ellipse(0.4, 0, 0.17, 0.5) + 2.0 * ellipse(0.42, 0, 0.17, 0.75)
    mean += 4.0 * (ellipse(0.37, 0, 0.1, 0.4) & (np.sin(down * 200) > 0.3))
    for side in (-0.2, 0.2):
        mean += 2.0 * ellipse(0.7, side, 0.19, 0.14) + 9.0 * ellipse(0.45, side, 0.02, 0.06)
    mean += 60.0 * ellipse(0.54, 0, 0.008, 0.06)
    return gaussian_filter(mean, 2.0 * rows / 1024) * (1024 / rows) ** 2 + 0.07


@pytest.fixture
def scan(rng):
    return rng.poisson(mean_of_a_scan()).astype(np.uint16)


def as_counts(values):
    return np.rint(np.clip(values, 0, None)).astype(np.uint16)


def pooled(counts):
    return counts.reshape(512, 2, 128, 2).sum(axis=(1, 3))


def resized(counts, method):
    return as_counts(Image.fromarray(pooled(counts).astype(np.float32)).resize((256, 1024), method))


def test_a_sound_scan_has_poisson_noise_and_no_findings(scan):
    found = assess(scan, SPACING, 1.0)
    assert found.findings == ()
    assert found.total == scan.sum()
    assert 0.9 < found.dispersion < 1.1


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, ">u2"])
def test_the_integer_type_does_not_matter(scan, dtype):
    assert assess(scan.astype(dtype), SPACING, 1.0) == assess(scan, SPACING, 1.0)


@pytest.mark.parametrize("rows, columns", [(2048, 512), (512, 128), (1003, 250)])
def test_other_matrices_are_sound_too(rng, rows, columns):
    native = rng.poisson(mean_of_a_scan(rows, columns))
    found = assess(native, 2458 / rows, NAN)
    assert found.findings == ()
    assert found.total == native.sum()
    assert 0.88 < found.dispersion < 1.13


@pytest.mark.parametrize("factor", [0.2, 3, 7])
def test_more_or_fewer_counts_are_no_finding(rng, factor):
    found = assess(rng.poisson(mean_of_a_scan() * factor), SPACING, 1.0)
    assert found.findings == ()
    assert 0.88 < found.dispersion < 1.12


def test_nm1_is_raw_counts_with_its_arms_at_the_detectors_edge(nema_nm1):
    native = pydicom.dcmread(nema_nm1).pixel_array
    found = assess(native, 2.26, native.sum() / 3_596_452)
    assert found.total == 3_596_452
    assert 0.9 < found.dispersion < 1.1
    assert found.findings == (quality.CUT_SIDE,)


@pytest.mark.parametrize(
    "damage",
    [
        lambda scan: pooled(scan).repeat(2, axis=0).repeat(2, axis=1),
        lambda scan: np.roll(pooled(scan).repeat(2, axis=0).repeat(2, axis=1), (1, 1), (0, 1)),
        lambda scan: resized(scan, Image.Resampling.BILINEAR),
        lambda scan: resized(scan, Image.Resampling.BICUBIC),
        lambda scan: as_counts(gaussian_filter(scan.astype(float), 0.6)),
        lambda scan: as_counts(0.6 * scan),
        # Scaled until the noise has a Poisson dispersion again: only its colour tells.
        lambda scan: as_counts(60 * gaussian_filter(pooled(scan).astype(float), 0.75)),
    ],
    ids=["replicated", "replicated, shifted", "bilinear", "bicubic", "smoothed", "dimmed", "both"],
)
def test_smoothed_and_resampled_scans_are_found(scan, damage):
    assert quality.SMOOTHED in assess(damage(scan), SPACING, 1.0).findings


@pytest.mark.parametrize("factor", [1.4, 2, 7.3])
def test_scaled_grey_values_are_found(scan, factor):
    found = assess(as_counts(scan * factor), SPACING, 1.0)
    assert found.findings == (quality.RESCALED,)
    assert found.dispersion == pytest.approx(factor, rel=0.1)


def test_eight_bits_clipped_at_the_brightest_are_rescaled_but_not_wrapped(scan):
    clipped = as_counts(scan * (255 / np.percentile(scan[scan > 0], 99)).clip(0, 255))
    clipped = np.minimum(clipped, 255)
    assert assess(clipped, SPACING, 1.0).findings == (quality.RESCALED,)


@pytest.mark.parametrize("modulus, factor", [(256, 8), (1024, 40)])
def test_values_that_wrapped_around_are_found(rng, modulus, factor):
    counts = rng.poisson(mean_of_a_scan() * factor)
    assert counts.max() > modulus
    assert quality.WRAPPED not in assess(counts, SPACING, 1.0).findings
    assert quality.WRAPPED in assess(counts % modulus, SPACING, 1.0).findings


def test_lettering_burned_in_is_not_taken_for_wrapped_values(scan):
    scan[900:920:2, 20:60] = 255
    assert quality.WRAPPED not in assess(scan, SPACING, 1.0).findings


@pytest.mark.parametrize("ratio, finds", [(1.0, False), (NAN, False), (0.99, True), (2.0, True)])
def test_counts_are_compared_with_the_files_own_sum(scan, ratio, finds):
    assert (quality.COUNTS_DISAGREE in assess(scan, SPACING, ratio).findings) is finds


@pytest.mark.parametrize("spacing, finds", [(2.4, False), (NAN, False), (1.0, True), (4.8, True)])
def test_a_field_of_view_that_holds_no_body_is_found(scan, spacing, finds):
    assert (quality.FIELD_OF_VIEW in assess(scan, spacing, 1.0).findings) is finds


@pytest.mark.parametrize(
    "part, finding",
    [
        (np.s_[180:], quality.CUT_TOP),
        (np.s_[:800], quality.CUT_BOTTOM),
        (np.s_[:, 50:], quality.CUT_SIDE),
        (np.s_[:, :200], quality.CUT_SIDE),
    ],
    ids=["head", "legs", "left", "right"],
)
@pytest.mark.parametrize("padded", [False, True])
def test_a_body_cut_off_is_found_at_its_edge_even_inside_padding(scan, part, finding, padded):
    kept = scan[part]
    if padded:
        kept = np.pad(kept, ((30, 11), (9, 14)))
    assert assess(kept, SPACING, 1.0).findings == (finding,)


def test_padding_round_a_whole_body_is_no_edge(scan):
    assert assess(np.pad(scan[60:-60, 10:-10], ((60, 60), (10, 10))), SPACING, 1.0).findings == ()


def test_a_masked_background_does_not_make_the_bodys_outline_an_edge(scan):
    masked = np.where(mean_of_a_scan() > 0.5, scan, 0)
    assert assess(masked, SPACING, 1.0).findings == ()


@pytest.mark.parametrize("pattern", ["rows", "columns", "checkerboard"])
def test_patterns_of_every_other_pixel_are_found(rng, scan, pattern):
    down, across = np.indices(scan.shape)
    odd = {"rows": down, "columns": across, "checkerboard": down + across}[pattern] % 2
    thinned = np.where(odd, rng.binomial(scan, 0.94), scan)
    assert assess(thinned, SPACING, 1.0).findings == (quality.PATTERN,)


@pytest.mark.parametrize("white", [255, 65535])
def test_dark_on_white_is_named_alone(scan, white):
    inverted = white - np.minimum(scan * 4, 255).astype(np.uint16)
    assert assess(inverted, SPACING, 1.0).findings == (quality.INVERTED,)


def test_a_flood_source_is_not_a_body(rng):
    assert quality.NOT_A_BODY in assess(rng.poisson(2.0, (1024, 256)), SPACING, 1.0).findings


def test_almost_no_counts_are_found_and_nothing_is_read_into_them(rng, scan):
    found = assess(rng.binomial(scan, 0.01), SPACING, 1.0)
    assert found.findings == (quality.EMPTY,)
    assert np.isnan(found.dispersion)


@pytest.mark.parametrize("shape", [(1, 1), (0, 5), (7, 300), (70, 70), (8, 4096), (3, 3)])
@pytest.mark.parametrize("level", [0, 2, 50_000])
def test_odd_shapes_are_assessed_without_a_fault(rng, shape, level):
    native = rng.poisson(level, shape)
    assert assess(native, SPACING, NAN).total == native.sum()


@pytest.mark.parametrize("value", [0, 7, 65535, 2**40])
def test_constant_images_are_assessed_without_a_fault(value):
    found = assess(np.full((1024, 256), value), SPACING, NAN)
    assert found.total == value * 1024 * 256
    assert found.findings


def test_findings_come_in_their_fixed_order_and_hold_no_number(scan):
    found = assess(as_counts(2.0 * scan)[180:], 1.0, 0.5).findings
    assert len(found) >= 4
    assert list(found) == [text for text in quality.FINDINGS if text in found]
    assert not any(character.isdigit() for text in quality.FINDINGS for character in text)
