"""The numbers of a DICOM element that may be missing or malformed: weak evidence vetoes nothing."""

import math

from pydicom.dataset import Dataset


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """The values of an element; none where it is absent or any of them is no finite number."""
    # pydicom converts a value when it is asked for, and raises whatever the conversion does.
    try:
        value = dataset.get(keyword)
        several = [value] if isinstance(value, int | float | str) else value or []
        values = [float(one) for one in several]
    except (ValueError, TypeError, ArithmeticError):
        return []
    return values if all(map(math.isfinite, values)) else []
