"""Finds scans that were exported twice, whatever the export did to their grey values.

In: views of 1024x256 counts, each made a signature of 64 bytes. Out: pairs of signatures of one and
the same scan. Two scans of one patient share the anatomy, two exports of one scan the noise, and
two pictures of one workstation the lettering, frame, ruler and grey bar, which must not count.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfds_builder.studies.matrix import COLUMNS, ROWS

SIGNATURE_BYTES = 64

# Bits that may differ, of 512. Different scans differ in 249 +- 11; the worst export of one scan
# that is still to be found, smoothed by a Gaussian of 1 pixel, in 132 +- 13.
LARGEST_DISTANCE = 172

# Other signatures that one may resemble. More are not copies of it but show what it shows.
MOST_COPIES = 8

_POOL_ROWS, _POOL_COLUMNS = 4, 2
_BLOCK_ROWS, _BLOCK_COLUMNS = ROWS // _POOL_ROWS, COLUMNS // _POOL_COLUMNS
_BODY_SHARE = 0.6
_FEWEST_BODY_BLOCKS = 1000
_ROOT_STEPS = 16
_CLIP = 2
_OUTLIER = 4

_HALF_BITS = 256
_FOLDED = 1024
_DIRECTIONS_NAME = b"scintigram signature 1"

_HALF_WORDS = 4
# Even bits alone: 128 +- 8 differ between different scans, 67 +- 7 in the worst export.
_LARGEST_HALF_DISTANCE = 110
_PAIRS_AT_ONCE = 2**19


@dataclass(frozen=True)
class Copies:
    """What `find_copies` found among signatures, named by their indices.

    `pairs` are (first, second, mirrored), ascending: first < second, and whether left and right are
    exchanged. `crowded` are those that resemble more than MOST_COPIES other signatures, as pictures
    with the same lettering all over would; they are paired with their equals alone.
    """

    pairs: list[tuple[int, int, bool]]
    crowded: frozenset[int]


def signature(counts: np.ndarray) -> bytes:
    """Bits that depend on the noise of a scan and hardly on its anatomy.

    They are the signs of 512 random projections of the residual, so that the share of bits in which
    two signatures differ is the angle between the residuals over pi (Charikar, STOC 2002,
    doi:10.1145/509907.509965). The first 256 do not change when the image is mirrored left to
    right; the others do, but for a projection of zero.

    Of uint16 counts (1024, 256), 64 bytes, the same on every machine; none where the image gives
    nothing to go by.
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


def find_copies(signatures: Sequence[bytes]) -> Copies:
    """Finds the signatures of one and the same scan.

    Of equal signatures only the first is compared with others, and paired with each of its equals:
    so n equal ones make n - 1 pairs. All the others are compared with each other. There are at most
    5 pairs for each signature, whatever the input. Empty ones are never paired.
    """
    equals: dict[bytes, list[int]] = {}
    for index, one in enumerate(signatures):
        if one:
            equals.setdefault(one, []).append(index)
    groups = list(equals.values())
    words = np.frombuffer(b"".join(equals), np.uint64).reshape(-1, SIGNATURE_BYTES // 8)
    near, crowded = _near_and_crowded(words)
    pairs = [(group[0], other, False) for group in groups for other in group[1:]]
    pairs += [(groups[a][0], groups[b][0], bool(mirrored)) for a, b, mirrored in near.tolist()]
    return Copies(
        pairs=sorted(pairs),
        crowded=frozenset(index for unique in crowded.tolist() for index in groups[unique]),
    )


def _residual(counts: np.ndarray) -> np.ndarray | None:
    """What is noise in (256, 128) blocks of 4x2 pixels: whole numbers, zero outside the body.

    The square root gives counts one variance. The fourth difference along a row and the second down
    a column remove what varies slowly, the anatomy, the better the finer the blocks; blocks of this
    size outlast resampling to half the matrix. All numbers are whole, so that sums of them do not
    depend on the order in which a machine adds.
    """
    roots = np.rint(_ROOT_STEPS * np.sqrt(_pooled(counts))).ravel()
    # The body is where no block that the differences draw on is dark: strokes on a dark ground,
    # frames and rulers are bright, but narrower than that.
    left_out = _widened(roots <= _BODY_SHARE * _sum(roots) / roots.size)
    # What the differences and the widening carry from one end of a row to the next ends here.
    edges = left_out.reshape(_BLOCK_ROWS, _BLOCK_COLUMNS)
    edges[[0, -1]] = edges[:, [0, 1, -2, -1]] = True
    rows = roots[_BLOCK_COLUMNS:-_BLOCK_COLUMNS] * 2
    rows -= roots[: -2 * _BLOCK_COLUMNS]
    rows -= roots[2 * _BLOCK_COLUMNS :]
    fourth = np.diff(rows, n=4)
    margin = _BLOCK_COLUMNS + 2
    residual = np.zeros_like(roots)
    np.multiply(fourth, ~left_out[margin:-margin], out=residual[margin:-margin])
    # Lettering on the body and steep edges of the anatomy stand out from the noise.
    size = max(left_out.size - np.count_nonzero(left_out), 1)
    heights = np.abs(residual)
    limit = np.float32(np.floor(_CLIP * _sum(heights) / size))
    usual = _sum(np.minimum(heights, limit)) / size
    left_out |= _widened(heights > np.floor(_OUTLIER * usual))
    limit = np.float32(np.floor(_CLIP * usual))
    if left_out.size - np.count_nonzero(left_out) < _FEWEST_BODY_BLOCKS or not limit:
        return None
    np.clip(residual, -limit, limit, out=residual)
    residual *= ~left_out
    return residual.reshape(_BLOCK_ROWS, _BLOCK_COLUMNS)


def _widened(blocks: np.ndarray) -> np.ndarray:
    """Adds to each of the chosen blocks its neighbours, 1 up and down and 2 to either side.

    Of a flat array, in which the end of a row and the start of the next one are neighbours too.
    """
    taller = blocks.copy()
    taller[_BLOCK_COLUMNS:] |= blocks[:-_BLOCK_COLUMNS]
    taller[:-_BLOCK_COLUMNS] |= blocks[_BLOCK_COLUMNS:]
    wider = taller.copy()
    for step in (1, 2):
        wider[step:] |= taller[:-step]
        wider[:-step] |= taller[step:]
    return wider


def _sum(whole: np.ndarray) -> float:
    """Exact: sixteen whole numbers of up to 20 bits fit into the 24 that float32 keeps."""
    return float(whole.reshape(16, -1).sum(axis=0).sum(dtype=np.float64))


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
    folds = _BLOCK_ROWS * _BLOCK_COLUMNS // 2 // _FOLDED
    shapes = (2, folds, _FOLDED), (2, _HALF_BITS, _FOLDED)
    sizes = [int(np.prod(shape)) for shape in shapes]
    stream = hashlib.shake_256(_DIRECTIONS_NAME).digest(sum(sizes) // 8)
    bits = np.unpackbits(np.frombuffer(stream, np.uint8)).astype(np.float32) * 2 - 1
    signs, directions = np.split(bits, sizes[:1])
    return signs.reshape(shapes[0]), directions.reshape(shapes[1])


def _near_and_crowded(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(pairs, 3): the rows of near signatures and whether mirrored; and the crowded rows."""
    total = words.shape[0]
    even = np.ascontiguousarray(words[:, :_HALF_WORDS].T)
    likenesses = np.zeros(total, np.int64)
    found = [np.empty((0, 3), np.int64)]
    step = max(_PAIRS_AT_ONCE // max(total, 1), 1)
    for start in range(0, total, step):
        stop = min(start + step, total)
        near = _near(words, even, start, stop, likenesses > MOST_COPIES)
        likenesses += np.bincount(near[:, :2].ravel(), minlength=total)
        # Kept are at most MOST_COPIES for each, so that memory does not grow with their square.
        found.append(near[(likenesses[near[:, :2]] <= MOST_COPIES).all(axis=1)])
    crowded = likenesses > MOST_COPIES
    pairs = np.concatenate(found)
    return pairs[~crowded[pairs[:, :2]].any(axis=1)], np.flatnonzero(crowded)


def _near(
    words: np.ndarray, even: np.ndarray, start: int, stop: int, crowded: np.ndarray
) -> np.ndarray:
    """Pairs of a row from `start` to `stop` with any later one, but for two crowded ones.

    Args:
      words: uint64 (signatures, 8).
      even: (4, signatures), the first four words, which mirroring leaves alone.
      crowded: bool (signatures,).

    Returns:
      int64 (pairs, 3): first row, second row, whether mirrored.
    """
    differing = np.empty((stop - start, words.shape[0] - start), np.uint64)
    ones = np.empty(differing.shape, np.uint8)
    distance = np.zeros(differing.shape, np.uint8)
    for word in even:
        np.bitwise_xor(word[start:stop, None], word[None, start:], out=differing)
        distance += np.bitwise_count(differing, out=ones)
    candidates = distance <= _LARGEST_HALF_DISTANCE
    candidates[np.ix_(crowded[start:stop], crowded[start:])] = False
    first, second = np.divmod(np.flatnonzero(candidates), differing.shape[1])
    later = second > first
    first, second = first[later] + start, second[later] + start
    bits = np.bitwise_count(words[first] ^ words[second])
    half = bits[:, :_HALF_WORDS].sum(axis=1, dtype=np.int64)
    other = bits[:, _HALF_WORDS:].sum(axis=1, dtype=np.int64)
    mirrored = other > _HALF_BITS // 2
    near = half + np.where(mirrored, _HALF_BITS - other, other) <= LARGEST_DISTANCE
    return np.stack((first, second, mirrored), axis=1)[near]
