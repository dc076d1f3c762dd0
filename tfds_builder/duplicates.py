"""Finds scans that were exported twice, whatever the export did to their grey values.

In: views of 1024x256 counts, each made a signature of 64 bytes. Out: pairs of signatures of one and
the same scan. Two scans of one patient share the anatomy, two exports of one scan the noise.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tfds_builder.matrix import COLUMNS, ROWS

SIGNATURE_BYTES = 64

# Bits that may differ, of 512. Different scans differ in 256 +- 11; the worst export of one scan
# that is still to be found, smoothed or compressed with loss, in 134 +- 10.
LARGEST_DISTANCE = 172

_POOL_ROWS, _POOL_COLUMNS = 4, 2
_BODY_SHARE = 0.4
_FEWEST_BODY_BLOCKS = 1000
_ROOT_STEPS = 16
_CLIP = 2

_HALF_BITS = 256
_FOLDED = 1024
_DIRECTIONS_NAME = b"scintigram signature 1"

_HALF_WORDS = 4
# Even bits alone: 128 +- 8 differ between different scans, 67 +- 7 in the worst export.
_LARGEST_HALF_DISTANCE = 110
_PAIRS_AT_ONCE = 2**19


def signature(counts: np.ndarray) -> bytes:
    """Bits that depend on the noise of a scan and hardly on its anatomy.

    They are the signs of 512 random projections of the residual, so that the share of bits in which
    two signatures differ is the angle between the residuals over pi (Charikar, STOC 2002,
    doi:10.1145/509907.509965). The first 256 do not change when the image is mirrored left to
    right; the others do, but for a projection of zero.

    Args:
      counts: uint16 (1024, 256).

    Returns:
      64 bytes, the same on every machine; none where the image gives nothing to go by.
    """
    residual = _residual(counts)
    if residual is None:
        return b""
    middle = residual.shape[1] // 2
    left, right = residual[:, :middle], residual[:, : middle - 1 : -1]
    signs, directions = _directions()
    bits = [
        directions[half] @ (part.reshape(signs[half].shape) * signs[half]).sum(axis=0) > 0
        for half, part in enumerate((left + right, left - right))
    ]
    return np.packbits(np.concatenate(bits)).tobytes()


def same_scan(
    signatures: Sequence[bytes],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[tuple[int, int, bool]]:
    """Finds the signatures of one and the same scan.

    Of equal signatures only the first is compared with others, and paired with each of its equals:
    so n equal ones make n - 1 pairs. All the others are compared with each other.

    Args:
      signatures: of `signature`; empty ones are never paired.
      progress: called with the number of unique signatures done, and their total.

    Yields:
      (first, second, mirrored), ascending: indices, first < second, and whether left and right are
      exchanged.
    """
    equals: dict[bytes, list[int]] = {}
    for index, one in enumerate(signatures):
        if one:
            equals.setdefault(one, []).append(index)
    groups = list(equals.values())
    words = np.frombuffer(b"".join(equals), np.uint64).reshape(-1, SIGNATURE_BYTES // 8)
    even = np.ascontiguousarray(words[:, :_HALF_WORDS].T)
    step = max(_PAIRS_AT_ONCE // max(len(groups), 1), 1)
    for start in range(0, len(groups), step):
        stop = min(start + step, len(groups))
        pairs = [(group[0], other, False) for group in groups[start:stop] for other in group[1:]]
        for first, second, mirrored in _near(words, even, start, stop):
            pairs.append((groups[first][0], groups[second][0], mirrored))
        yield from sorted(pairs)
        progress(stop, len(groups))


def _residual(counts: np.ndarray) -> np.ndarray | None:
    """What is noise in (256, 128) blocks of 4x2 pixels: whole numbers, zero outside the body.

    The square root gives counts one variance. The fourth difference along a row and the second down
    a column remove what varies slowly, the anatomy, the better the finer the blocks; blocks of this
    size outlast resampling to half the matrix. All numbers are whole, so that sums of them do not
    depend on the order in which a machine adds.
    """
    blocks = _pooled(counts)
    body = blocks > _BODY_SHARE * blocks.mean(dtype=np.float64)
    size = np.count_nonzero(body)
    if size < _FEWEST_BODY_BLOCKS:
        return None
    roots = np.rint(_ROOT_STEPS * np.sqrt(blocks))
    rows = 2 * roots[1:-1] - roots[:-2] - roots[2:]
    fourth = 6 * rows[:, 2:-2] - 4 * (rows[:, 1:-3] + rows[:, 3:-1]) + rows[:, :-4] + rows[:, 4:]
    residual = np.zeros_like(roots)
    np.multiply(fourth, body[1:-1, 2:-2], out=residual[1:-1, 2:-2])
    # Steep edges of the anatomy pass the differences: none may outweigh the noise of many blocks.
    limit = np.floor(_CLIP * np.abs(residual).sum(dtype=np.float64) / size).astype(np.float32)
    return np.clip(residual, -limit, limit) if limit else None


def _pooled(counts: np.ndarray) -> np.ndarray:
    """uint16 (1024, 256) -> float32 (256, 128): the sums of 4x2 pixels."""
    # Whole numbers of 16 bits add up twice as fast as float32, where a block's sum fits.
    fits = int(counts.max()) * _POOL_ROWS * _POOL_COLUMNS <= np.iinfo(counts.dtype).max
    pairs = np.add(counts[::2], counts[1::2], dtype=counts.dtype if fits else np.float32)
    fours = pairs[::2] + pairs[1::2]
    return (fours[:, ::2] + fours[:, 1::2]).astype(np.float32, copy=False)


@functools.cache
def _directions() -> tuple[np.ndarray, np.ndarray]:
    """Signs (2, 16, 1024) and directions (2, 256, 1024) of +-1: the even half, then the odd.

    Half a residual is multiplied by signs, folded to 1024 values by summing 16, and projected: a
    projection on +-1 of full length in a sixteenth of the time.
    """
    folds = ROWS // _POOL_ROWS * COLUMNS // _POOL_COLUMNS // 2 // _FOLDED
    shapes = (2, folds, _FOLDED), (2, _HALF_BITS, _FOLDED)
    sizes = [int(np.prod(shape)) for shape in shapes]
    stream = hashlib.shake_256(_DIRECTIONS_NAME).digest(sum(sizes) // 8)
    bits = np.unpackbits(np.frombuffer(stream, np.uint8)).astype(np.float32) * 2 - 1
    signs, directions = np.split(bits, sizes[:1])
    return signs.reshape(shapes[0]), directions.reshape(shapes[1])


def _near(
    words: np.ndarray, even: np.ndarray, start: int, stop: int
) -> Iterator[tuple[int, int, bool]]:
    """Pairs of a row from `start` to `stop` with any later one.

    Args:
      words: uint64 (signatures, 8).
      even: (4, signatures), the first four words, which mirroring leaves alone.
    """
    differing = np.empty((stop - start, words.shape[0] - start), np.uint64)
    ones = np.empty(differing.shape, np.uint8)
    distance = np.zeros(differing.shape, np.uint8)
    for word in even:
        np.bitwise_xor(word[start:stop, None], word[None, start:], out=differing)
        distance += np.bitwise_count(differing, out=ones)
    first, second = np.divmod(
        np.flatnonzero(distance <= _LARGEST_HALF_DISTANCE), differing.shape[1]
    )
    later = second > first
    first, second = first[later] + start, second[later] + start
    bits = np.bitwise_count(words[first] ^ words[second])
    half = bits[:, :_HALF_WORDS].sum(axis=1, dtype=np.int64)
    other = bits[:, _HALF_WORDS:].sum(axis=1, dtype=np.int64)
    mirrored = other > _HALF_BITS // 2
    near = half + np.where(mirrored, _HALF_BITS - other, other) <= LARGEST_DISTANCE
    yield from zip(
        first[near].tolist(), second[near].tolist(), mirrored[near].tolist(), strict=True
    )
