"""The phantom's scans: what a study is a function of, its physics, its lesions."""

import numpy as np
import pytest
from scipy import ndimage

from tfds_builder.phantom import LABELS, PROPORTIONS, sample_case, simulate
from tfds_builder.phantom.body.anatomy import place_skeleton
from tfds_builder.phantom.body.outline import body_outline
from tfds_builder.phantom.body.skeleton import reference_skeleton
from tfds_builder.phantom.body.texture import SOFT_SHAPE
from tfds_builder.phantom.camera.camera import (
    Scene,
    add_scatter,
    detect,
    expected_primary,
    turn_posterior,
)
from tfds_builder.phantom.camera.protocol import COLLIMATORS, Protocol

SEED = 20240229


@pytest.fixture(scope="module")
def cases():
    return [sample_case(SEED, number) for number in range(500)]


def _first(cases, label, wanted=lambda case: True):
    return next(n for n, case in enumerate(cases) if case.label == label and wanted(case))


@pytest.fixture(scope="module")
def scans(cases):
    """One scan of each class, by label."""
    return {label: simulate(SEED, _first(cases, label)) for label in LABELS}


@pytest.fixture(scope="module")
def placed(cases):
    """A patient's placed points and the scene, as the camera gets them."""
    from tfds_builder.phantom.body.patient import sample_pose

    skeleton = reference_skeleton()
    patient, pose = cases[0].patient, sample_pose(np.random.default_rng(5))
    top, grid = 300.0, Protocol().grid
    outline = body_outline(patient, pose, grid, top, np.zeros(SOFT_SHAPE))
    scene = Scene(outline, grid, COLLIMATORS["LEHR"], top, (160.0, -170.0))
    return skeleton, place_skeleton(skeleton, patient, pose), scene


def _structure_views(placed, *names, soft=0.0):
    """What both cameras see of these structures alone, no scatter."""
    skeleton, points, scene = placed
    chosen = np.concatenate(
        [np.arange(skeleton.named(n).start, skeleton.named(n).stop) for n in names]
    )
    return expected_primary(points[chosen], skeleton.weights[chosen], scene, soft)


def test_a_scan_is_a_pure_function_of_seed_patient_and_study():
    once, again = simulate(9, 4), simulate(9, 4)
    np.testing.assert_array_equal(once.counts, again.counts)
    np.testing.assert_array_equal(once.masks, again.masks)
    assert not np.array_equal(once.counts, simulate(9, 5).counts)
    assert not np.array_equal(once.counts, simulate(10, 4).counts)


def test_shapes_types_and_labels(scans):
    for label, scan in scans.items():
        assert scan.counts.shape == scan.masks.shape == (2, 1024, 256)
        assert scan.counts.dtype == np.uint16
        assert scan.masks.dtype == np.uint8
        assert scan.label == label


def test_counts_are_poisson_around_the_expectation(scans):
    scan = scans["normal"]
    draws = np.stack([detect(scan.expected[[0, 0]], np.random.default_rng(k))[0] for k in range(8)])
    body = scan.expected[0] > 2
    ratio = draws[:, body].var(axis=0, ddof=1).mean() / draws[:, body].mean()
    assert ratio == pytest.approx(1.0, abs=0.03)
    pearson = (scan.counts - scan.expected) ** 2 / scan.expected
    assert pearson[scan.expected > 0.5].mean() == pytest.approx(1.0, abs=0.03)


def test_counts_and_background_lie_in_the_clinical_range(scans):
    for scan in scans.values():
        at_reference = scan.counts.sum(axis=(1, 2)) * scan.acquisition.speed_mm_s / 4.43
        assert ((at_reference > 0.2e6) & (at_reference < 1.0e6)).all()
        assert 0.03 < scan.counts[:, :40].mean() < 0.14


def test_attenuation_halves_a_deep_source_and_posterior_shows_spine_and_kidneys(placed):
    for names, behind in (
        (("vertebra_L2", "vertebra_T8"), True),
        (("kidney_left", "kidney_right"), True),
        (("scapula_blade_left",), True),
        (("sternum_body", "manubrium"), False),
        (("bladder",), False),
        (("nasal_cavity",), False),
    ):
        front, back = _structure_views(placed, *names).sum(axis=(1, 2))
        assert (back > 1.3 * front) if behind else (front > 1.3 * back), names


def test_views_show_the_same_structure_at_the_same_height(placed):
    front, back = _structure_views(placed, "kidney_left")
    rows = np.arange(1024)
    centers = [np.average(rows, weights=view.sum(axis=1)) for view in (front, back)]
    assert centers[0] == pytest.approx(centers[1], abs=0.5)


def test_patients_left_is_on_the_right_of_the_anterior_view_only(placed):
    skeleton, points, _ = placed
    left = skeleton.named("humerus_head_left")
    assert points[left.start : left.stop, 0].mean() > 100
    front, back = _structure_views(placed, "humerus_head_left")
    turned = turn_posterior(np.stack([front, back]))
    columns = np.arange(256)
    center = [np.average(columns, weights=view.sum(axis=0)) for view in turned]
    assert center[0] > 140
    assert center[1] < 116


def test_a_lateral_lesion_is_on_opposite_sides_of_the_two_views(cases):
    columns = np.arange(256)
    limbs = ("knee", "patella", "glenoid", "humerus", "wrist", "midfoot", "ankle")
    checked = 0
    for number in [n for n, c in enumerate(cases) if c.label == "arthritis"][:6]:
        scan = simulate(SEED, number)
        for finding in scan.condition.findings:
            if not finding.number or not finding.site.startswith(limbs):
                continue
            sign = 1 if finding.site.endswith("left") else -1
            for view, direction in enumerate((1, -1)):
                area = (scan.masks[view] == finding.number).sum(axis=0)
                if area.any():
                    assert sign * direction * (np.average(columns, weights=area) - 127.5) > 0
                    checked += 1
    assert checked > 10


def test_resolution_follows_the_collimator_table():
    distances = np.array([0.0, 50.0, 100.0, 150.0, 200.0])
    fwhm = COLLIMATORS["LEHR"].sigma_mm(distances) * 2.3548
    np.testing.assert_allclose(fwhm, [4.1, 5.3, 7.0, 8.9, 10.9], atol=0.06)
    assert COLLIMATORS["LEUHR"].sigma_mm(100.0) < COLLIMATORS["LEHR"].sigma_mm(100.0)


def test_blur_and_scatter_keep_or_add_the_stated_counts(placed):
    primary = _structure_views(placed, "patella_left", soft=0.43)
    summed = add_scatter(primary, 0.4, Protocol().grid).sum(axis=(1, 2))
    np.testing.assert_allclose(summed, 1.4 * primary.sum(axis=(1, 2)), rtol=2e-3)


def test_body_has_the_height_of_the_patient(scans):
    for scan in scans.values():
        smooth = ndimage.gaussian_filter(scan.expected[0], 2)
        rows = np.flatnonzero(smooth.max(axis=1) > 0.8)
        height = (rows[-1] - rows[0] + 1) * 2.40
        assert height == pytest.approx(scan.patient.height_mm, abs=60)


def test_class_shares_are_near_the_documented_ones(cases):
    shares = [np.mean([case.label == label for case in cases]) for label in LABELS]
    deviation = np.sqrt(np.asarray(PROPORTIONS) * (1 - np.asarray(PROPORTIONS)) / len(cases))
    assert (np.abs(np.asarray(shares) - PROPORTIONS) < 4 * deviation).all()


def test_about_one_patient_in_seven_has_several_studies(cases):
    several = np.mean([len(case.dates) > 1 for case in cases])
    assert 0.09 < several < 0.21


@pytest.mark.parametrize(
    "values",
    [
        {"rows": 2048, "columns": 512},
        {"rows": 512, "columns": 128, "pixel_mm": 4.8},
        {"uptake_hours": 24.0, "difficulty": "hard"},
        {"activity_mbq": 50.0, "uptake_hours": 12.0},
        {"speed_mm_s": 20.0, "collimator": "LEUHR", "difficulty": "hard"},
    ],
)
def test_unusual_protocols_give_scans(values):
    for number in range(3):
        scan = simulate(SEED, number, 0, Protocol(**values))
        assert scan.counts.shape == (2, *scan.protocol.grid.shape)
        assert np.isfinite(scan.expected).all()
        assert scan.expected.min() > 0
        assert scan.counts.sum() > 5 * scan.acquisition.background * scan.counts.size / 2
