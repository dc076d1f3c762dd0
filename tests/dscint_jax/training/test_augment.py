import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from dscint_jax.config import Augmentation
from dscint_jax.input_pipeline.normalise import normalise
from dscint_jax.input_pipeline.protocol import COPIES_SEED
from dscint_jax.random_streams import stream_key
from dscint_jax.training.augment import (
    Pose,
    affine,
    apply_copies,
    augment_counts,
    augment_images,
    draw_poses,
    move,
)


def _images(seed, shape=(3, 32, 16, 1)):
    return jnp.array(np.random.default_rng(seed).random(shape, np.float32))


def _affine(image, angle=0.0, shift=(0.0, 0.0), flip=1.0, size=1.0):
    flip, size, angle = (jnp.float32(value) for value in (flip, size, angle))
    return affine(image, Pose(flip=flip, size=size, angle=angle, shift=jnp.array(shift)))


def _augment(seed, images, ranges):
    return augment_images(jax.random.split(jax.random.key(seed), len(images)), images, ranges)


def test_normalise_is_the_square_root_over_the_scale_and_clips():
    counts = jnp.array([[[[9], [900]]], [[[0], [4]]]])
    result = normalise(counts, jnp.array([1.0, 4.0]), clip=5.0)
    np.testing.assert_allclose(result.squeeze(), [[3.0, 5.0], [0.0, 1.0]])


def test_normalise_gives_poisson_counts_the_same_spread_at_any_brightness():
    random = np.random.default_rng(0)
    dim, bright = (
        normalise(jnp.array(random.poisson(mean, (1, 64, 64, 1))), jnp.ones(1), clip=100.0)
        for mean in (20, 500)
    )
    assert abs(dim.std() / bright.std() - 1) < 0.1


def test_affine_without_movement_changes_nothing():
    image = _images(1)[0]
    np.testing.assert_allclose(_affine(image), image, atol=1e-6)


def test_affine_mirrors_left_and_right():
    image = _images(2)[0]
    np.testing.assert_allclose(_affine(image, flip=-1.0), image[:, ::-1], atol=1e-6)


def test_affine_shifts_down_and_right_and_fills_with_zero():
    image = _images(3)[0]
    moved = _affine(image, shift=(3.0, 2.0))
    np.testing.assert_allclose(moved[3:, 2:], image[:-3, :-2], atol=1e-6)
    assert not moved[:3].any()
    assert not moved[:, :2].any()


def test_affine_rotates_the_top_to_the_right_as_scipy_does():
    image = _images(4, (1, 33, 33, 1))[0]
    angle = 20.0
    found = _affine(image, angle=np.deg2rad(angle))[..., 0]
    # scipy's positive angle turns the other way.
    expected = ndimage.rotate(np.asarray(image[..., 0]), -angle, reshape=False, order=1)
    np.testing.assert_allclose(found[4:-4, 4:-4], expected[4:-4, 4:-4], atol=1e-5)
    mark = jnp.zeros((33, 33, 1)).at[2, 16, 0].set(1.0)
    row, column = np.unravel_index(_affine(mark, angle=np.pi / 2)[..., 0].argmax(), (33, 33))
    assert (row, column) == (16, 30)


def test_augment_with_no_ranges_returns_the_images_themselves():
    images = _images(5)
    assert _augment(0, images, Augmentation()) is images


def test_augment_draws_anew_for_every_image_and_key():
    images = jnp.repeat(_images(6)[:1], 8, axis=0)
    ranges = Augmentation(mirror=0.5, translation=(0.1, 0.1), rotation=10.0, rotated=1.0)
    first = _augment(0, images, ranges)
    assert len({image.tobytes() for image in np.asarray(first)}) == 8
    np.testing.assert_array_equal(first, _augment(0, images, ranges))
    assert not np.array_equal(first, _augment(1, images, ranges))


def test_augment_without_rotation_only_moves_pixels_and_keeps_their_noise():
    images = jnp.pad(_images(7, (6, 20, 12, 1)), ((0, 0), (6, 6), (4, 4), (0, 0)))
    ranges = Augmentation(mirror=0.5, translation=(0.15, 0.2), rotation=30.0, rotated=0.0)
    moved = np.asarray(_augment(3, images, ranges))
    for before, after in zip(np.asarray(images), moved, strict=True):
        np.testing.assert_allclose(np.sort(after, None), np.sort(before, None), atol=1e-5)


ALL_RANGES = Augmentation(mirror=0.5, translation=(0.1, 0.15), rotation=20.0, rotated=0.7)


def test_normalise_divides_each_view_by_its_own_scale_and_keeps_a_missing_one_zero():
    counts = jnp.array(np.random.default_rng(9).poisson(50, (2, 2, 8, 4, 1))).at[1, 0].set(0)
    scale = jnp.array([[2.0, 8.0], [1.0, 4.0]])
    result = normalise(counts, scale, clip=100.0)
    views = normalise(counts.reshape(4, 8, 4, 1), scale.reshape(4), clip=100.0)
    np.testing.assert_array_equal(result.reshape(views.shape), views)
    assert not result[1, 0].any()


def test_augment_moves_the_posterior_view_as_the_camera_behind_sees_it():
    anterior = _images(10, (8, 32, 16, 1))
    # What a transparent patient would show from behind.
    studies = jnp.stack([anterior, anterior[:, :, ::-1]], axis=1)
    moved = _augment(5, studies, ALL_RANGES)
    np.testing.assert_allclose(moved[:, 1], moved[:, 0, :, ::-1], atol=1e-4)
    assert not np.allclose(moved[:, 1], moved[:, 0], atol=0.1)


def test_augment_draws_once_a_study_as_it_does_for_a_single_view():
    studies = _images(11, (8, 2, 32, 16, 1))
    moved = _augment(6, studies, ALL_RANGES)
    single = _augment(6, studies[:, 0], ALL_RANGES)
    np.testing.assert_allclose(moved[:, 0], single, atol=1e-6)


def test_augment_leaves_a_missing_view_zero():
    studies = _images(12, (8, 2, 32, 16, 1)).at[::2, 1].set(0.0).at[1::2, 0].set(0.0)
    moved = _augment(7, studies, ALL_RANGES)
    np.testing.assert_array_equal(moved.any((2, 3, 4)), studies.any((2, 3, 4)))


def test_augment_rotates_the_share_that_is_asked_for():
    images = jnp.repeat(_images(8)[:1], 400, axis=0)
    ranges = Augmentation(rotation=20.0, rotated=0.3)
    turned = np.asarray(_augment(4, images, ranges))
    changed = np.abs(turned - np.asarray(images)).max((1, 2, 3)) > 1e-3
    assert 0.2 < changed.mean() < 0.4


def test_augment_keeps_to_the_ranges():
    spot = jnp.zeros((200, 41, 41, 1)).at[:, 20, 20].set(1.0)
    ranges = Augmentation(translation=(0.1, 0.2))
    moved = np.asarray(_augment(2, spot, ranges))[..., 0]
    rows, columns = (
        (moved.sum((2, 1)[axis]) * np.arange(41)).sum(-1) / moved.sum((1, 2)) - 20
        for axis in (0, 1)
    )
    assert 3.5 < abs(rows).max() <= 4.1 + 1e-3
    assert 7.2 < abs(columns).max() <= 8.2 + 1e-3


def test_affine_enlarges_about_the_centre_as_scipy_does():
    image = _images(13, (1, 33, 25, 1))[0]
    found = _affine(image, size=1.25)[..., 0]
    centre = np.array([16.0, 12.0])
    expected = ndimage.affine_transform(
        np.asarray(image[..., 0]), np.eye(2) / 1.25, centre - centre / 1.25, order=1
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_scaling_keeps_to_its_range_and_goes_both_ways():
    ranges = Augmentation(scaling=0.25, scaled=0.5)
    keys = jax.random.split(jax.random.key(0), 2000)
    sizes = np.asarray(draw_poses(keys, (64, 16), ranges).size)
    changed = sizes[sizes != 1]
    assert 0.45 < len(changed) / len(sizes) < 0.55
    assert 0.8 <= changed.min() < 0.81
    assert 1.24 < changed.max() <= 1.25
    assert abs(np.log(changed).mean()) < 0.02


def test_translation_happens_in_the_share_that_is_asked_for():
    ranges = Augmentation(translation=(0.2, 0.2), translated=0.25)
    poses = draw_poses(jax.random.split(jax.random.key(1), 2000), (64, 64), ranges)
    assert 0.2 < np.asarray((poses.shift != 0).any(-1)).mean() < 0.3


def _counts(mean, shape=(400, 16, 16, 1), seed=0):
    return jnp.array(np.random.default_rng(seed).poisson(mean, shape), jnp.int32)


def _keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def test_thinned_poisson_counts_are_poisson_counts_of_a_shorter_scan():
    counts, scale = _counts(40.0), jnp.full(400, 40.0)
    thinned, new_scale = augment_counts(
        _keys(400), counts, scale, Augmentation(thinning=0.75, thinned=1.0)
    )
    assert thinned.dtype == jnp.int32
    assert (thinned <= counts).all()
    assert (thinned >= 0).all()
    kept = np.asarray(new_scale) / 40.0
    assert 0.25 <= kept.min() < 0.26
    assert 0.99 < kept.max() <= 1.0
    means = np.asarray(thinned).mean((1, 2, 3))
    np.testing.assert_allclose(means / (40.0 * kept), 1.0, atol=0.1)
    variances = np.asarray(thinned).var((1, 2, 3))
    # Half as many counts times a half would have a quarter of the variance, not a half.
    assert abs((variances / means).mean() - 1) < 0.03


def test_thinning_leaves_the_brightness_and_adds_noise():
    counts, scale = _counts(80.0), jnp.full(400, 80.0)
    ranges = Augmentation(thinning=0.9, thinned=1.0)
    before = normalise(counts, scale, clip=9.0)
    after = normalise(*augment_counts(_keys(400), counts, scale, ranges), clip=9.0)
    assert abs(float(after.mean()) - float(before.mean())) < 0.02
    assert after.std() > 1.3 * before.std()


def test_thinning_happens_in_the_share_that_is_asked_for():
    counts, scale = _counts(10.0), jnp.ones(400)
    ranges = Augmentation(thinning=0.5, thinned=0.3)
    thinned, new_scale = augment_counts(_keys(400), counts, scale, ranges)
    changed = np.asarray(new_scale) != 1
    assert 0.2 < changed.mean() < 0.4
    np.testing.assert_array_equal(np.asarray(thinned)[~changed], np.asarray(counts)[~changed])


def test_intensity_changes_the_scale_within_its_range_and_leaves_the_counts():
    counts, scale = _counts(10.0), jnp.full(400, 6.0)
    ranges = Augmentation(intensity=0.5, intensified=0.5)
    same, new_scale = augment_counts(_keys(400), counts, scale, ranges)
    np.testing.assert_array_equal(same, counts)
    factors = 6.0 / np.asarray(new_scale)
    assert 0.4 < (factors != 1).mean() < 0.6
    assert 1 / 1.5 - 1e-6 <= factors.min() < 0.7
    assert 1.45 < factors.max() <= 1.5 + 1e-6


def test_both_views_of_a_study_are_thinned_alike_and_a_missing_one_stays_empty():
    counts = _counts(50.0, (100, 2, 16, 16, 1)).at[::2, 1].set(0)
    scale = jnp.ones((100, 2))
    ranges = Augmentation(thinning=0.5, thinned=1.0, intensity=0.2, intensified=1.0)
    thinned, new_scale = augment_counts(_keys(100), counts, scale, ranges)
    np.testing.assert_array_equal(new_scale[:, 0], new_scale[:, 1])
    assert not thinned[::2, 1].any()
    assert thinned[1::2, 1].any((1, 2, 3)).all()


def test_counts_that_nothing_changes_are_returned_themselves():
    counts, scale = _counts(10.0), jnp.ones(400)
    found = augment_counts(_keys(400), counts, scale, Augmentation(thinned=1.0, intensity=0.3))
    assert found[0] is counts
    assert found[1] is scale


MOVING = Augmentation(mirror=0.5, translation=(0.1, 0.2), rotation=8.0, rotated=0.5)


def test_copy_lies_as_its_number_says_wherever_it_is_in_a_batch():
    images = jnp.asarray(np.random.default_rng(0).random((1, 16, 8, 1), np.float32))
    numbers = jnp.array([9, 3, 12, 3])
    copies = apply_copies(jnp.repeat(images, 4, 0), numbers, MOVING)
    alone = apply_copies(images, numbers[1:2], MOVING)
    np.testing.assert_array_equal(copies[1], alone[0])
    np.testing.assert_array_equal(copies[1], copies[3])
    assert len({np.asarray(copy).tobytes() for copy in copies}) == 3


def test_copy_is_moved_into_a_pose_of_its_ranges():
    images = jnp.asarray(np.random.default_rng(0).random((6, 16, 8, 1), np.float32))
    numbers = jnp.arange(6) + 1
    keys = jax.vmap(lambda number: stream_key(COPIES_SEED, "copies", number))(numbers)
    expected = move(images, draw_poses(keys, (16, 8), MOVING))
    np.testing.assert_array_equal(apply_copies(images, numbers, MOVING), expected)


@pytest.mark.parametrize("shape", [(3, 16, 8, 1), (3, 2, 16, 8, 1)])
def test_image_itself_stays_as_it_is_beside_copies(shape):
    images = jnp.asarray(np.random.default_rng(0).random(shape, np.float32))
    copies = apply_copies(images, jnp.array([-1, 5, -1]), MOVING)
    np.testing.assert_array_equal(copies[0], images[0])
    np.testing.assert_array_equal(copies[2], images[2])
    assert not np.array_equal(copies[1], images[1])
    still = apply_copies(images, jnp.array([4, 5, 6]), Augmentation())
    np.testing.assert_array_equal(still, images)
