import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from dscint_jax.augment import Augmentation, affine, augment, normalise


def _images(seed, shape=(3, 32, 16, 1)):
    return jnp.array(np.random.default_rng(seed).random(shape, np.float32))


def _affine(image, angle=0.0, shift=(0.0, 0.0), flip=1.0):
    return affine(image, angle=jnp.float32(angle), shift=jnp.array(shift), flip=jnp.float32(flip))


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
    assert augment(jax.random.key(0), images, Augmentation()) is images


def test_augment_draws_anew_for_every_image_and_key():
    images = jnp.repeat(_images(6)[:1], 8, axis=0)
    ranges = Augmentation(mirror=0.5, translation=(0.1, 0.1), rotation=10.0, rotated=1.0)
    first = augment(jax.random.key(0), images, ranges)
    assert len({image.tobytes() for image in np.asarray(first)}) == 8
    np.testing.assert_array_equal(first, augment(jax.random.key(0), images, ranges))
    assert not np.array_equal(first, augment(jax.random.key(1), images, ranges))


def test_augment_without_rotation_only_moves_pixels_and_keeps_their_noise():
    images = jnp.pad(_images(7, (6, 20, 12, 1)), ((0, 0), (6, 6), (4, 4), (0, 0)))
    ranges = Augmentation(mirror=0.5, translation=(0.15, 0.2), rotation=30.0, rotated=0.0)
    moved = np.asarray(augment(jax.random.key(3), images, ranges))
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
    moved = augment(jax.random.key(5), studies, ALL_RANGES)
    np.testing.assert_allclose(moved[:, 1], moved[:, 0, :, ::-1], atol=1e-4)
    assert not np.allclose(moved[:, 1], moved[:, 0], atol=0.1)


def test_augment_draws_once_a_study_as_it_does_for_a_single_view():
    studies = _images(11, (8, 2, 32, 16, 1))
    moved = augment(jax.random.key(6), studies, ALL_RANGES)
    single = augment(jax.random.key(6), studies[:, 0], ALL_RANGES)
    np.testing.assert_allclose(moved[:, 0], single, atol=1e-6)


def test_augment_leaves_a_missing_view_zero():
    studies = _images(12, (8, 2, 32, 16, 1)).at[::2, 1].set(0.0).at[1::2, 0].set(0.0)
    moved = augment(jax.random.key(7), studies, ALL_RANGES)
    np.testing.assert_array_equal(moved.any((2, 3, 4)), studies.any((2, 3, 4)))


def test_augment_rotates_the_share_that_is_asked_for():
    images = jnp.repeat(_images(8)[:1], 400, axis=0)
    ranges = Augmentation(rotation=20.0, rotated=0.3)
    turned = np.asarray(augment(jax.random.key(4), images, ranges))
    changed = np.abs(turned - np.asarray(images)).max((1, 2, 3)) > 1e-3
    assert 0.2 < changed.mean() < 0.4


def test_augment_keeps_to_the_ranges():
    spot = jnp.zeros((200, 41, 41, 1)).at[:, 20, 20].set(1.0)
    ranges = Augmentation(translation=(0.1, 0.2))
    moved = np.asarray(augment(jax.random.key(2), spot, ranges))[..., 0]
    rows, columns = (
        (moved.sum((2, 1)[axis]) * np.arange(41)).sum(-1) / moved.sum((1, 2)) - 20
        for axis in (0, 1)
    )
    assert 3.5 < abs(rows).max() <= 4.1 + 1e-3
    assert 7.2 < abs(columns).max() <= 8.2 + 1e-3
