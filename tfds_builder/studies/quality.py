"""Checks one whole-body view for what goes wrong before a data set is built.

In: the native image, its pixel spacing and its sum over CountsAccumulated. Out: total counts, the
noise's dispersion, and findings in fixed words: nothing of the patient, no text of a file.
"""

from dataclasses import dataclass

import numpy as np

NOT_A_BODY = "uniform counts: a flood or bar phantom, not a body"
EMPTY = "almost no counts"
INVERTED = "dark on white: background brighter than the body"
SMOOTHED = "noise below Poisson: smoothed or resampled"
RESCALED = "noise above Poisson: grey values rescaled"
COUNTS_DISAGREE = "counts disagree with CountsAccumulated"
WRAPPED = "values wrapped around inside hot spots"
PATTERN = "checkerboard or line pattern"
CUT_TOP = "body cut off at the top edge"
CUT_BOTTOM = "body cut off at the bottom edge"
CUT_SIDE = "body cut off at a side edge"
FIELD_OF_VIEW = "field of view cannot be a whole body: pixel spacing or matrix wrong"

FINDINGS = (
    NOT_A_BODY,
    EMPTY,
    INVERTED,
    SMOOTHED,
    RESCALED,
    COUNTS_DISAGREE,
    WRAPPED,
    PATTERN,
    CUT_TOP,
    CUT_BOTTOM,
    CUT_SIDE,
    FIELD_OF_VIEW,
)

# A clinical view holds 360,000 counts or more.
_FEWEST_COUNTS = 20_000
_FIELD_OF_VIEW_MM = (1200.0, 2800.0)
_COUNTS_TOLERANCE = 1e-3
_FEWEST_BLOCKS = 8
_BLOCK = 8

# 800 phantom views have 0.91 to 1.09, NEMA's NM1 1.06; a Gaussian of half a pixel leaves 0.2,
# replication of 2x2 pixels 0.1, interpolation to twice the matrix 0.02.
_DISPERSION = (0.85, 1.2)
_LEAST_WHITENESS = 0.65
_PLACES = 24_000
_BODY_RANGE = (0.125, 2.5)
_FEWEST_PLACES = 4000

_MODULI = (256, 1024, 4096, 65536)
_WRAP_HIGHEST = 0.8
_WRAP_FALL = 0.65
_WRAP_SIGMAS = 4.5
_FEWEST_FALLS = 4
_CLIPPED_FROM = 0.97
_CLIPPED_SHARE = 0.15

_PATTERN_SHARE = 0.015
_PATTERN_SIGMAS = 6.0

_COARSE = 4
_UNIFORM = 0.2

_STRIP = 4
_STRETCH = 16
_EDGE_SHARE = 0.12
_EDGE_SIGMAS = 3.0
_INVERTED_POSITION = 0.75

Box = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Quality:
    """What one view's pixels tell.

    Attributes:
      total: counts in the native image.
      dispersion: variance over mean of the noise: 1 for Poisson counts; NaN where too few counts
        tell.
      findings: texts of FINDINGS, in that order; empty for a sound scan.
    """

    total: int
    dispersion: float
    findings: tuple[str, ...]


def assess(native: np.ndarray, pixel_spacing_mm: float, counts_ratio: float) -> Quality:
    """Checks one view.

    Args:
      native: whole, non-negative counts (rows, columns), any integer type.
      pixel_spacing_mm: native row spacing; NaN where unknown.
      counts_ratio: sum of pixels over DICOM's CountsAccumulated; NaN where unknown.
    """
    native = np.ascontiguousarray(native, dtype=native.dtype.newbyteorder("="))
    highest = int(native.max(initial=0))
    sums = _row_sums(native, highest)
    by_column = sums.sum(axis=0, dtype=np.int64)
    total = int(native.sum(dtype=np.int64))
    shortest, longest = _FIELD_OF_VIEW_MM
    height = native.shape[0] * pixel_spacing_mm
    found = {
        EMPTY: total < _FEWEST_COUNTS,
        COUNTS_DISAGREE: abs(counts_ratio - 1) > _COUNTS_TOLERANCE,
        FIELD_OF_VIEW: height < shortest or height > longest,
    }
    dispersion = float("nan")
    if not found[EMPTY]:
        box = _box(native)
        blocks = _blocks(sums, box)
        if min(blocks.shape) < _FEWEST_BLOCKS:
            found[FIELD_OF_VIEW] = True
        else:
            body = float(blocks[blocks > blocks.mean() / 2].mean())
            dispersion, whiteness = _noise(native, body)
            found[INVERTED] = _inverted(blocks)
            found[NOT_A_BODY] = not found[INVERTED] and _uniform(blocks)
            # Where the background is what is bright, nothing else can be judged.
            if not found[INVERTED]:
                noise = dispersion if dispersion > 1 else 1.0
                found[SMOOTHED] = dispersion < _DISPERSION[0] or whiteness < _LEAST_WHITENESS
                found[RESCALED] = dispersion > _DISPERSION[1]
                found[WRAPPED] = _wrapped(native, highest, noise)
                found[PATTERN] = _patterned(by_column, noise)
                found |= _cut(native, sums, blocks, box, body, noise)
    return Quality(total, dispersion, tuple(text for text in FINDINGS if found.get(text)))


def _noise(native: np.ndarray, body: float) -> tuple[float, float]:
    """The dispersion of the noise, and that over the dispersion by first differences.

    The second is near 1 for white noise, whatever the grey values were scaled by. Smoothing and
    interpolation lower it, as they take more from the faster changes. Rows are taken in threes an
    odd step apart, and every column in turn, so that a pattern of two pixels is met in any phase.
    """
    step = max(native.size // _PLACES | 1, 3)
    threes = (native.shape[0] - 2) // step
    first, second, third = (
        native[row : row + threes * step : step].astype(np.float32) for row in range(3)
    )
    pair, down = first + second, first - second
    by_first = _dispersion(down[:, 1:] - down[:, :-1], pair[:, 1:] + pair[:, :-1], body, 4, 1)
    pair += third
    down -= second
    down += third
    mixed, sums = down[:, 2:] + down[:, :-2], pair[:, 2:] + pair[:, :-2]
    down *= 2
    mixed -= down[:, 1:-1]
    sums += pair[:, 1:-1]
    dispersion = _dispersion(mixed, sums, body, 9, 4)
    return dispersion, dispersion / by_first if by_first else 0.0


def _dispersion(mixed: np.ndarray, sums: np.ndarray, body: float, pixels: int, gain: int) -> float:
    """Variance over mean of the noise, from differences along rows and columns at once.

    Such a difference, of first or second order, cancels whatever depends on the row or the column
    alone or is linear in both. Let its weights w of `pixels` pixels add up to zero. For Poisson
    counts of one mean whose sum is s, its square has mean s sum(w^2) / pixels (multinomial
    variance): so places may be left out by their sum, the background and hot spots here, without
    bias.

    Args:
      mixed: differences; overwritten.
      sums: sums of the pixels that they are made of; overwritten.
      body: mean counts of a pixel of the body.
      pixels, gain: pixels of a difference, and sum(w^2) / pixels.

    Returns NaN where too few pixels hold counts.
    """
    faintest, brightest = (share * body * pixels for share in _BODY_RANGE)
    used = (sums >= max(faintest, 1.0)) & (sums <= brightest)
    if np.count_nonzero(used) < _FEWEST_PLACES:
        return float("nan")
    sums *= used
    mixed *= used
    return float(np.vdot(mixed, mixed)) / (gain * float(sums.sum()))


def _row_sums(native: np.ndarray, highest: int) -> np.ndarray:
    """(rows, columns) -> (rows / 8, 2, columns): sums of four even and of four odd rows each."""
    rows = native.shape[0] // _BLOCK
    whole = native[: rows * _BLOCK].reshape(rows, _BLOCK // 2, 2, native.shape[1])
    # In the image's own type, where that can hold a block of one column, sums take half the time.
    fits = highest <= np.iinfo(native.dtype).max // _BLOCK
    return np.add.reduce(whole, axis=1, dtype=native.dtype if fits else np.int64)


def _box(native: np.ndarray) -> Box:
    """The image proper: without the zeros that filled up a larger matrix."""
    rows, columns = native.shape
    if all(edge.any() for edge in (native[0], native[-1], native[:, 0], native[:, -1])):
        return (0, rows), (0, columns)
    filled_rows, filled_columns = np.asarray(native.any(axis=1)), np.asarray(native.any(axis=0))
    return _extent(filled_rows), _extent(filled_columns)


def _extent(filled: np.ndarray) -> tuple[int, int]:
    return int(filled.argmax()), int(filled.size - filled[::-1].argmax())


def _blocks(sums: np.ndarray, box: Box) -> np.ndarray:
    """Means of the 8x8 blocks that lie wholly inside the box."""
    (top, bottom), (left, right) = box
    inside = sums[-(-top // _BLOCK) : bottom // _BLOCK, :, left:right]
    means = np.add(inside[:, 0], inside[:, 1], dtype=np.float32) / _BLOCK**2
    means = means[:, : means.shape[1] // _BLOCK * _BLOCK]
    for _ in range(3):
        means = means[:, ::2] + means[:, 1::2]
    return means


def _uniform(blocks: np.ndarray) -> bool:
    """Whether all that is not empty is about as bright, in blocks of 32x32 pixels.

    The blocks of a body spread by half of their mean (0.48 to 1.0 in 294 phantom views, 0.60 in
    NEMA's NM1), those of a flood source by a twentieth, and so do those of bars, averaged.
    """
    rows, columns = (n // _COARSE * _COARSE for n in blocks.shape)
    if not rows or not columns:
        return False
    coarse = np.add.reduce(blocks[:rows, :columns].reshape(-1, _COARSE, columns), axis=1)
    coarse = coarse.reshape(coarse.shape[0], -1, _COARSE).sum(axis=2)
    bright = coarse[coarse > np.sort(coarse, axis=None)[coarse.size * 95 // 100] / 5]
    return bool(bright.size and bright.std() < _UNIFORM * bright.mean())


def _inverted(blocks: np.ndarray) -> bool:
    """Whether the border is near the bright end of what the blocks span."""
    border = np.sort(np.concatenate([blocks[0], blocks[-1], blocks[:, 0], blocks[:, -1]]))
    darkest, brightest = blocks.min(), blocks.max()
    position = border[border.size // 2] - darkest
    return bool(brightest > darkest and position > _INVERTED_POSITION * (brightest - darkest))


def _wrapped(native: np.ndarray, highest: int, dispersion: float) -> bool:
    """Whether neighbours of bright pixels fall by most of the modulus, as no camera resolves.

    A collimator of 4 mm lets neighbours 2.4 mm apart fall by half. Noise of grey values scaled up
    can do more, so falls must exceed that too.
    """
    modulus = next((m for m in _MODULI if _WRAP_HIGHEST * m <= highest < m), None)
    if modulus is None:
        return False
    fall = _WRAP_FALL * modulus
    rows, columns = np.divmod(np.flatnonzero(native >= fall), native.shape[1])
    inner = (rows > 0) & (rows < native.shape[0] - 1)
    inner &= (columns > 0) & (columns < native.shape[1] - 1)
    rows, columns = rows[inner], columns[inner]
    bright = native[rows, columns].astype(np.float32)
    # Values that pile up at the highest were clipped there, or are lettering burned in.
    if np.count_nonzero(bright > _CLIPPED_FROM * highest) > _CLIPPED_SHARE * bright.size:
        return False
    falls = 0
    for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        other = native[rows + down, columns + right].astype(np.float32)
        noise = np.sqrt(dispersion * (bright + other))
        falls += np.count_nonzero(bright - other > np.maximum(fall, _WRAP_SIGMAS * noise))
    return bool(falls >= _FEWEST_FALLS)


def _patterned(by_column: np.ndarray, dispersion: float) -> bool:
    """Whether even and odd rows, columns or diagonals share the counts unevenly.

    `by_column` (2, columns) is the counts of the even and of the odd rows.
    """
    even = by_column[:, : by_column.shape[1] // 2 * 2]
    total = even.sum()
    (a, c), (b, d) = even[:, ::2].sum(axis=1) / total, even[:, 1::2].sum(axis=1) / total
    contrast = max(abs(a + b - c - d), abs(a + c - b - d), abs(a + d - b - c))
    return bool(contrast > max(_PATTERN_SHARE, _PATTERN_SIGMAS * np.sqrt(dispersion / total)))


def _cut(
    native: np.ndarray,
    sums: np.ndarray,
    blocks: np.ndarray,
    box: Box,
    body: float,
    dispersion: float,
) -> dict[str, bool]:
    """Which edges a body reaches: in stretches of 16 pixels of the outermost four rows or columns.

    A background of nothing but zeros was masked: then zeros at the edge are no padding, and the
    box is the body's own.
    """
    some = np.sort(blocks[::2, ::2], axis=None)
    background = some[some.size // 10]
    (top, bottom), (left, right) = box if background else tuple((0, n) for n in native.shape)
    least = background + _EDGE_SHARE * body
    least += _EDGE_SIGMAS * np.sqrt(dispersion * least / (_STRIP * _STRETCH))
    across, along = slice(left, right), slice(-(-top // _BLOCK), bottom // _BLOCK)
    heights = [native[top : top + _STRIP, across], native[bottom - _STRIP : bottom, across]]
    first, last = (np.add.reduce(rows, axis=0, dtype=np.float32) for rows in heights)
    sides = [sums[along, :, left : left + _STRIP], sums[along, :, right - _STRIP : right]]
    near, far = (side.sum(axis=(1, 2), dtype=np.float32) for side in sides)
    return {
        CUT_TOP: bool(_brightest(first, _STRETCH) > least),
        CUT_BOTTOM: bool(_brightest(last, _STRETCH) > least),
        CUT_SIDE: bool(max(_brightest(side, _STRETCH // _BLOCK) for side in (near, far)) > least),
    }


def _brightest(strip: np.ndarray, width: int) -> float:
    """Sums along a strip, `width` of them a stretch -> the highest mean pixel of a stretch."""
    stretches = strip[: strip.size // width * width].reshape(-1, width).sum(axis=1)
    return float(stretches.max()) / (_STRIP * _STRETCH)
