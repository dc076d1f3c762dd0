import functools
import io
import time
import tracemalloc

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter

from tfds_builder.studies.duplicates import (
    LARGEST_DISTANCE,
    MOST_COPIES,
    SIGNATURE_BYTES,
    Copies,
    find_copies,
    signature,
)


@functools.cache
def mean_of_a_scan():
    """Expected counts of a smooth body with ribs and hot spots, in a faint background."""
    down, across = np.mgrid[0:1:1024j, -1:1:256j]
    mean = 6.0 * (((down - 0.2) / 0.06) ** 2 + (across / 0.3) ** 2 < 1)
    mean += 6.0 * (((down - 0.42) / 0.18) ** 2 + (across / 0.6) ** 2 < 1)
    mean += 5.0 * ((np.abs(down - 0.38) < 0.08) & (np.abs(across) < 0.4) & (np.sin(down * 200) > 0))
    mean += 3.0 * ((np.abs(down - 0.7) < 0.2) & (np.abs(np.abs(across) - 0.2) < 0.12))
    mean += 60.0 * (((down - 0.54) / 0.008) ** 2 + ((across - 0.02) / 0.06) ** 2 < 1)
    return gaussian_filter(mean, 2.0) + 0.07


def as_counts(values):
    return np.rint(np.clip(values, 0, None)).astype(np.uint16)


def eight_bit(counts):
    highest = np.percentile(counts[counts > 0], 99)
    return np.minimum(np.rint(counts * (255 / highest)), 255).astype(np.uint8)


def jpeg(counts):
    file = io.BytesIO()
    Image.fromarray(eight_bit(counts)).save(file, "jpeg", quality=90)
    return np.asarray(Image.open(file)).astype(np.uint16)


def halved_and_back(counts):
    image = Image.fromarray(counts.astype(np.float32))
    for size in ((128, 512), (256, 1024)):
        image = image.resize(size, Image.Resampling.BICUBIC)
    return as_counts(np.asarray(image))


def replicated(counts):
    pooled = counts.reshape(512, 2, 128, 2).sum(axis=(1, 3)).astype(np.uint16)
    return pooled.repeat(2, axis=0).repeat(2, axis=1)


EXPORTS = {
    "times a constant": lambda counts: counts * np.uint16(5),
    "times a large constant": lambda counts: counts * np.uint16(150),
    "8 bits, clipped": lambda counts: eight_bit(counts).astype(np.uint16),
    "replicated": replicated,
    "bicubic": halved_and_back,
    "jpeg": jpeg,
    "smoothed": lambda counts: as_counts(gaussian_filter(counts.astype(float), 0.8)),
}


LETTERING = (
    "SAINT ANYWHERE HOSPITAL",
    "Nuclear medicine, camera 2",
    "Whole body bone scan",
    "Tc-99m MDP, 740 MBq",
    "3 h after injection",
    "12 cm/min, anterior",
    "Window 140 keV, 15 %",
    "Not for diagnosis",
)


def lettered(counts, size, grey, left=3, top=6):
    """As an 8-bit picture with eight lines, frame, ruler and grey bar in it."""
    picture = Image.fromarray(eight_bit(counts))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size)
    for line, text in enumerate(LETTERING):
        draw.text((left, top + line * size * 5 // 4), text, grey, font)
    draw.rectangle((0, 0, 255, 1023), outline=grey, width=2)
    draw.line((241, 100, 241, 900), grey)
    for row in range(100, 901, 20):
        draw.line((241, row, 248, row), grey)
    for row in range(300, 700):
        draw.line((6, row, 18, row), (700 - row) * 255 // 400)
    return np.asarray(picture).astype(np.uint16)


# The largest reaches over the head, the last two lie on the trunk.
LETTERINGS = {
    "small": {"size": 10, "grey": 255},
    "middling, grey": {"size": 14, "grey": 200},
    "large": {"size": 20, "grey": 255},
    "large, grey": {"size": 20, "grey": 200},
    "on the trunk": {"size": 14, "grey": 255, "left": 60, "top": 350},
    "on the trunk, grey": {"size": 14, "grey": 200, "left": 60, "top": 350},
}


def distance(first, second):
    """Bits that differ, as the signatures are and with the second one mirrored."""
    differ = np.frombuffer(first, np.uint8) ^ np.frombuffer(second, np.uint8)
    even, odd = np.bitwise_count(differ).reshape(2, -1).sum(axis=1, dtype=int)
    return min(even + odd, even + 256 - odd)


@pytest.fixture
def scans(rng):
    """Eight scans of one unmoving body: the same anatomy, other noise."""
    return [rng.poisson(mean_of_a_scan()).astype(np.uint16) for _ in range(8)]


@pytest.fixture
def nm1(nema_nm1):
    return pydicom.dcmread(nema_nm1).pixel_array.astype(np.uint16)


def test_a_signature_is_64_bytes_and_repeats(scans):
    first = signature(scans[0])
    assert len(first) == SIGNATURE_BYTES
    assert signature(scans[0].copy()) == first


def test_signatures_stay_as_they_are():
    # A golden value: signatures of different versions and machines must be comparable.
    down, across = np.mgrid[:1024, :256].astype(np.uint64)
    counts = ((down * 2654435761 + across * 40503 + down * across * 97) >> np.uint64(7)) % 23
    assert signature(counts.astype(np.uint16)) == bytes.fromhex(
        "b46eb812b7016461093a7fc96f1c4dc1a351c917769383b1301d33872e81ce1f"
        "3d37ce2bbe0f50cba3ab1ce496f5ccfcf4be7c50628f59de3e4b6fe09644acde"
    )


@pytest.mark.parametrize("export", EXPORTS.values(), ids=EXPORTS)
def test_another_export_of_a_scan_is_recognised(scans, export):
    for scan in scans[:4]:
        assert distance(signature(scan), signature(export(scan))) < LARGEST_DISTANCE


@pytest.mark.parametrize("export", EXPORTS.values(), ids=EXPORTS)
def test_another_export_of_nm1_is_recognised(nm1, export):
    assert distance(signature(nm1), signature(export(nm1))) < LARGEST_DISTANCE


def test_another_scan_of_the_same_body_is_not_paired(scans):
    signatures = [signature(scan) for scan in scans]
    assert find_copies(signatures).pairs == []


def test_scans_with_many_counts_are_told_apart_too(rng):
    signatures = [signature(rng.poisson(mean_of_a_scan() * 7).astype(np.uint16)) for _ in range(8)]
    assert find_copies(signatures).pairs == []


@pytest.mark.parametrize("lettering", LETTERINGS.values(), ids=LETTERINGS)
def test_the_same_lettering_makes_no_copies_of_different_scans(scans, lettering):
    pictures = [lettered(scan, **lettering) for scan in scans]
    inverted = [255 - picture for picture in pictures]
    signatures = [signature(picture) for picture in pictures + inverted]
    assert all(signatures[: len(scans)])
    different = [(a, b) for a in range(len(scans)) for b in range(a)]
    assert min(distance(signatures[a], signatures[b]) for a, b in different) > LARGEST_DISTANCE + 15
    assert find_copies(signatures).pairs == []


@pytest.mark.parametrize("lettering", LETTERINGS.values(), ids=LETTERINGS)
def test_a_lettered_export_of_a_scan_is_recognised(scans, lettering):
    for scan in scans[:4]:
        plain, picture = signature(scan), signature(lettered(scan, **lettering))
        elsewhere = signature(lettered(scan, 12, 255, left=90, top=860)[:, ::-1])
        assert distance(plain, picture) < LARGEST_DISTANCE
        assert distance(picture, elsewhere) < LARGEST_DISTANCE


@pytest.mark.parametrize("export", EXPORTS.values(), ids=EXPORTS)
def test_another_export_of_a_lettered_picture_is_recognised(scans, export):
    for scan in scans[:2]:
        picture = lettered(scan, 14, 200)
        assert distance(signature(picture), signature(export(picture))) < LARGEST_DISTANCE


def test_exports_are_paired_and_mirrored_ones_named(scans, nm1):
    images = [*scans, jpeg(scans[3]), scans[7][:, ::-1], nm1, halved_and_back(nm1)[:, ::-1]]
    pairs = find_copies([signature(image) for image in images]).pairs
    assert pairs == [(3, 8, False), (7, 9, True), (10, 11, True)]


def test_images_without_enough_counts_have_no_signature_and_are_never_paired(rng, scans):
    sparse = np.zeros((1024, 256), np.uint16)
    sparse[tuple(rng.integers(0, (1024, 256), (300, 2)).T)] = 1
    nothing = [np.zeros((1024, 256), np.uint16), sparse, np.full((1024, 256), 9, np.uint16)]
    signatures = [signature(image) for image in (*nothing, scans[0], *nothing)]
    assert signatures[:3] == [b""] * 3
    assert find_copies(signatures).pairs == []


def test_counts_near_the_largest_do_not_overflow(rng):
    counts = rng.integers(40_000, 65_536, (1024, 256)).astype(np.uint16)
    assert distance(signature(counts), signature(counts // 16)) < 30


def test_equal_signatures_make_a_star_and_ascend(rng):
    one, two, three = (rng.bytes(SIGNATURE_BYTES) for _ in range(3))
    signatures = [one, two, b"", one, three, two, one, b""]
    assert find_copies(signatures).pairs == [(0, 3, False), (0, 6, False), (1, 5, False)]


def test_a_copy_of_a_copy_is_compared_through_the_first(rng):
    one, other = rng.bytes(SIGNATURE_BYTES), rng.bytes(SIGNATURE_BYTES)
    changed = bytes([one[0] ^ 0b1011, *one[1:]])
    pairs = find_copies([other, one, changed, one, changed]).pairs
    assert pairs == [(1, 2, False), (1, 3, False), (2, 4, False)]


@pytest.mark.parametrize("signatures", [[], [b""], [b"", b""], [bytes(range(64))]])
def test_nothing_to_compare_is_no_pair(signatures):
    assert find_copies(signatures).pairs == []


def test_the_distance_decides_up_to_the_threshold(rng):
    one = rng.bytes(SIGNATURE_BYTES)

    def flipped(even, odd):
        bits = np.unpackbits(np.frombuffer(one, np.uint8))
        bits[rng.permutation(256)[:even]] ^= 1
        bits[256 + rng.permutation(256)[:odd]] ^= 1
        return np.packbits(bits).tobytes()

    half = LARGEST_DISTANCE // 2
    assert find_copies([one, flipped(half, half)]).pairs == [(0, 1, False)]
    assert find_copies([one, flipped(half, half + 1)]).pairs == []
    assert find_copies([one, flipped(half, 256 - half)]).pairs == [(0, 1, True)]
    assert find_copies([one, flipped(half, 255 - half)]).pairs == []
    assert find_copies([one, flipped(256, 0)]).pairs == []


def test_pairs_across_chunks_are_found_in_order(rng):
    signatures = [rng.bytes(SIGNATURE_BYTES) for _ in range(3000)]
    for first, second in ((5, 2999), (5, 800), (1500, 1501), (2400, 2700)):
        signatures[second] = bytes([signatures[first][0] ^ second % 251, *signatures[first][1:]])
    pairs = find_copies(signatures).pairs
    expected = [(5, 800), (5, 2999), (800, 2999), (1500, 1501), (2400, 2700)]
    assert pairs == [(first, second, False) for first, second in expected]


def test_twenty_thousand_equal_signatures_are_quick():
    start = time.perf_counter()
    pairs = find_copies([bytes(range(64))] * 20_000).pairs
    assert len(pairs) == 19_999
    assert time.perf_counter() - start < 2


def likenesses(rng, count, share=0.06):
    """Unique signatures, each near every other one."""
    one = np.frombuffer(rng.bytes(SIGNATURE_BYTES), np.uint8)
    return [
        (one ^ np.packbits(rng.random(8 * SIGNATURE_BYTES) < share)).tobytes() for _ in range(count)
    ]


def test_as_many_copies_as_are_credible_are_all_paired(rng):
    copies = find_copies(likenesses(rng, MOST_COPIES + 1))
    assert copies.crowded == frozenset()
    every = [(a, b, False) for a in range(MOST_COPIES + 1) for b in range(a + 1, MOST_COPIES + 1)]
    assert copies.pairs == every


def test_one_more_is_a_crowd_and_pairs_with_its_equals_alone(rng):
    crowd = likenesses(rng, MOST_COPIES + 2)
    pair = likenesses(rng, 2)
    copies = find_copies([b"", *pair, *crowd, crowd[3]])
    again = 3 + len(crowd)
    assert copies.pairs == [(1, 2, False), (6, again, False)]
    assert copies.crowded == frozenset(range(3, again + 1))


def test_equal_signatures_are_no_crowd(rng):
    one, other = likenesses(rng, 2)
    copies = find_copies([one] * 50 + [other] * 50)
    assert copies.crowded == frozenset()
    assert len(copies.pairs) == 49 + 49 + 1


def test_what_resembles_only_a_crowded_signature_is_itself_not_crowded(rng):
    centre = rng.bytes(SIGNATURE_BYTES)
    bits = np.unpackbits(np.frombuffer(centre, np.uint8))
    around = []
    for _ in range(MOST_COPIES + 1):
        changed = bits.copy()
        changed[rng.permutation(256)[:80]] ^= 1
        changed[256 + rng.permutation(256)[:80]] ^= 1
        around.append(np.packbits(changed).tobytes())
    assert find_copies([*around, centre]) == Copies(pairs=[], crowded=frozenset({len(around)}))
    assert len(find_copies([*around[1:], centre]).pairs) == MOST_COPIES


def test_a_large_crowd_is_found_across_chunks_in_bounded_memory(rng):
    crowd = likenesses(rng, 6000)
    tracemalloc.start()
    copies = find_copies(crowd)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert copies.pairs == []
    assert copies.crowded == frozenset(range(6000))
    assert peak < 150 * 2**20
