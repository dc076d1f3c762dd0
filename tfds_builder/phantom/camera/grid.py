"""The matrix of an acquisition: rows and columns of square pixels, and millimetres to pixels."""

import dataclasses
from typing import TypeVar

import numpy as np

Values = TypeVar("Values", np.ndarray, np.floating, float)


@dataclasses.dataclass(frozen=True)
class Grid:
    """An image of `rows` x `columns` pixels; x = 0 lies in the middle column, z = 0 in row 0."""

    rows: int
    columns: int
    pixel_mm: float

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.rows, self.columns

    @property
    def length_mm(self) -> float:
        """From the first to the last row."""
        return self.rows * self.pixel_mm

    def row(self, z_mm: Values) -> Values:
        """The row, not rounded, whose centre lies at z."""
        return z_mm / self.pixel_mm - 0.5

    def column(self, x_mm: Values) -> Values:
        """The column, not rounded, whose centre lies at x."""
        return x_mm / self.pixel_mm + (self.columns / 2 - 0.5)

    def z_mm(self, row: Values) -> Values:
        """z of the centres of rows."""
        return (row + 0.5) * self.pixel_mm

    def x_mm(self, column: Values) -> Values:
        """x of the centres of columns."""
        return (column + 0.5 - self.columns / 2) * self.pixel_mm


def four_pixels(
    row: np.ndarray, column: np.ndarray, shape: tuple[int, int]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The pixels of an image about each place, counted row by row, and their bilinear shares.

    Four arrays each, of the shape of `row` and `column`; what lies outside counts at the edge.
    """
    row, column = np.clip(row, 0, shape[0] - 1.001), np.clip(column, 0, shape[1] - 1.001)
    top, left = row.astype(np.int32), column.astype(np.int32)
    down, right = row - top, column - left
    first = top * shape[1] + left
    pixels = [first, first + 1, first + shape[1], first + shape[1] + 1]
    shares = [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right]
    return pixels, shares
