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
