"""Brings any image matrix to 1024x256 without inventing or losing counts unsaid.

In: counts, or a lesion mask, of the native matrix. Out: the same at 1024x256, by sum-pooling,
exact replication, centred padding or cropping, never by interpolation.
"""

from dataclasses import dataclass

import numpy as np

from tfds_builder.commandline.errors import UserError

ROWS, COLUMNS = 1024, 256


@dataclass(frozen=True)
class Fit:
    """How a matrix of `rows` x `columns` becomes 1024x256.

    Attributes:
      rows, columns: the native matrix.
      pool: counts of pool x pool pixels are summed; 1 for none.
      repeat: each pixel is repeated repeat x repeat times; 1 for none.
    """

    rows: int
    columns: int
    pool: int = 1
    repeat: int = 1

    @property
    def crops(self) -> bool:
        """Whether rows or columns at the edge are cut off."""
        rows, columns = self._scaled
        return rows > ROWS or columns > COLUMNS

    @property
    def spacing_factor(self) -> float:
        """Pixel spacing afterwards over pixel spacing before."""
        return self.pool / self.repeat

    @property
    def description(self) -> str:
        """What is done, for the notes; empty where nothing is."""
        rows, columns = self._scaled
        steps = [
            (self.pool > 1, f"sum-pooled {self.pool}x{self.pool}"),
            (self.repeat > 1, f"pixels replicated {self.repeat}x{self.repeat}"),
            (rows < ROWS or columns < COLUMNS, "padded with zeros"),
            (self.crops, "cropped"),
        ]
        done = ", ".join(text for applies, text in steps if applies)
        return f"matrix {self.rows}x{self.columns} {done} to {ROWS}x{COLUMNS}" if done else ""

    @property
    def _scaled(self) -> tuple[int, int]:
        return self.rows // self.pool * self.repeat, self.columns // self.pool * self.repeat

    def counts(self, native: np.ndarray) -> np.ndarray:
        """Whole, non-negative counts (rows, columns) -> uint16 (1024, 256).

        Raises UserError where a pixel exceeds 65535 counts.
        """
        if self.pool > 1:
            native = self._blocks(native).sum(axis=(1, 3), dtype=np.int64)
        if native.max(initial=0) > np.iinfo(np.uint16).max:
            raise UserError(f"a pixel holds {native.max()} counts, more than 65535")
        return self._place(native.astype(np.uint16, copy=False))

    def mask(self, native: np.ndarray) -> np.ndarray:
        """Lesion numbers uint8 (rows, columns) -> uint8 (1024, 256); the highest number wins."""
        if self.pool > 1:
            native = self._blocks(native).max(axis=(1, 3))
        return self._place(native)

    def _blocks(self, native: np.ndarray) -> np.ndarray:
        pool = self.pool
        return native.reshape(self.rows // pool, pool, self.columns // pool, pool)

    def _place(self, image: np.ndarray) -> np.ndarray:
        if self.repeat > 1:
            image = image.repeat(self.repeat, axis=0).repeat(self.repeat, axis=1)
        if image.shape == (ROWS, COLUMNS):
            return np.ascontiguousarray(image)
        placed = np.zeros((ROWS, COLUMNS), image.dtype)
        (to_rows, from_rows), (to_columns, from_columns) = (
            _centred(have, want) for have, want in zip(image.shape, placed.shape, strict=True)
        )
        placed[to_rows, to_columns] = image[from_rows, from_columns]
        return placed


def fit_of(rows: int, columns: int) -> Fit:
    """Decides how a native matrix becomes 1024x256.

    Twice the rows or more, and divisible: pooled. Half or less: replicated. Whatever then differs
    is padded or cropped about the centre, where the patient lies.
    """
    pool = rows // ROWS
    if pool > 1 and rows % pool == 0 and columns % pool == 0:
        return Fit(rows, columns, pool=pool)
    repeat = min(ROWS // rows, COLUMNS // columns)
    return Fit(rows, columns, repeat=max(repeat, 1))


def _centred(have: int, want: int) -> tuple[slice, slice]:
    size = min(have, want)
    to, from_ = (want - size) // 2, (have - size) // 2
    return slice(to, to + size), slice(from_, from_ + size)
