"""Reads the numbers of a TIFF, and of EXIF and multi-picture data, which are TIFFs without pixels.

In: the content. Out: where its pages lie, and the numbers under a tag. TIFF 6.0, and BigTIFF.
"""

import struct
from dataclasses import dataclass

import numpy as np

from tfds_builder.commandline.errors import UserError
from tfds_builder.readers.raster.container import MOST_PARTS, damaged

TIFF_STARTS = {
    b"II*\0": ("<", False),
    b"MM\0*": (">", False),
    b"II+\0": ("<", True),
    b"MM\0+": (">", True),
}
ORIENTATION, MP_IMAGES = 274, 0xB001

_MOST_PAGES = 1024
_SHORT, _LONG = 3, 4
_TYPES = {1: "u1", _SHORT: "u2", _LONG: "u4", 16: "u8"}


@dataclass(frozen=True)
class _Entry:
    """A tag's type, how many values it has, and the field that holds or locates them."""

    type: int
    count: int
    field: bytes


Directory = dict[int, _Entry]


@dataclass(frozen=True)
class Tiff:
    """Reads the numbers of a TIFF (TIFF 6.0; BigTIFF where `big`)."""

    content: bytes
    order: str
    big: bool

    @classmethod
    def of(cls, content: bytes) -> "Tiff":
        """The TIFF that begins with one of `TIFF_STARTS`."""
        return cls(content, *TIFF_STARTS[content[:4]])

    @property
    def first(self) -> int:
        """Where the first directory lies."""
        return self._number("Q", 8) if self.big else self._number("I", 4)

    def pages(self) -> list[int]:
        """Where each page's directory lies."""
        found: dict[int, None] = {}
        at = self.first
        while at:
            if at in found:
                raise damaged("TIFF", "pages in a loop")
            if len(found) == _MOST_PAGES:
                raise UserError(f"has more than {_MOST_PAGES} pages; save each view as a file")
            found[at] = None
            at = self._next(at)
        if not found:
            raise damaged("TIFF", "no pages")
        return list(found)

    def directory(self, at: int) -> tuple[Directory, int]:
        """The entries of the directory that lies there, and how many bytes it takes."""
        count, size, entry = self._extent(at)
        entries: Directory = {}
        if count > MOST_PARTS or at + size > len(self.content):
            raise damaged("TIFF", "directory")
        for values in struct.iter_unpack(entry, self.content[at + self._head : at + size]):
            entries.setdefault(values[0], _Entry(*values[1:]))
        return entries, size

    def values(self, directory: Directory, tag: int) -> np.ndarray:
        """All whole numbers of a tag that is there."""
        entry = directory[tag]
        dtype = np.dtype(self.order + _TYPES[entry.type])
        size = entry.count * dtype.itemsize
        if size <= len(entry.field):
            return np.frombuffer(entry.field[:size], dtype)
        at = int.from_bytes(entry.field, "little" if self.order == "<" else "big")
        if at + size > len(self.content):
            raise damaged("TIFF", "truncated")
        return np.frombuffer(self.content, dtype, entry.count, at)

    def one(self, directory: Directory, tag: int, default: int | None = None) -> int:
        """The only or first number of a tag."""
        if tag not in directory and default is not None:
            return default
        return int(self.values(directory, tag)[0])

    def with_only(self, numbers: dict[int, np.ndarray]) -> bytes:
        """The same file, never a BigTIFF, with these tags in its only directory, behind its end."""
        at = -(-len(self.content) // 8) * 8
        far = at + 2 + 12 * len(numbers) + 4
        entries, arrays = [], []
        for tag, values in sorted(numbers.items()):
            kind = _SHORT if values.max() < 2**16 else _LONG
            field = values.astype(self.order + _TYPES[kind]).tobytes()
            if len(field) > 4:
                arrays.append(field)
                field = struct.pack(self.order + "I", far)
                far += len(arrays[-1])
            head = struct.pack(self.order + "HHI", tag, kind, len(values))
            entries.append(head + field.ljust(4, b"\0"))
        start = {"<": b"II*\0", ">": b"MM\0*"}[self.order] + struct.pack(self.order + "I", at)
        count = struct.pack(self.order + "H", len(numbers))
        gap = bytes(at - len(self.content))
        rest = memoryview(self.content)[len(start) :]
        return b"".join((start, rest, gap, count, *entries, bytes(4), *arrays))

    @property
    def _head(self) -> int:
        return 8 if self.big else 2

    def _extent(self, at: int) -> tuple[int, int, str]:
        """A directory's number of entries, its bytes up to the next pointer, an entry's layout."""
        layout = self.order + ("HHQ8s" if self.big else "HHI4s")
        count = self._number("Q" if self.big else "H", at)
        return count, self._head + count * struct.calcsize(layout), layout

    def _next(self, at: int) -> int:
        _, size, _ = self._extent(at)
        return self._number("Q" if self.big else "I", at + size)

    def _number(self, layout: str, at: int) -> int:
        return struct.unpack_from(self.order + layout, self.content, at)[0]


def exif_value(content: bytes, tag: int) -> int:
    """A number in the first directory of EXIF or multi-picture data; 0 where there is none."""
    try:
        tiff = Tiff.of(content)
        directory, _ = tiff.directory(tiff.first)
        return tiff.one(directory, tag, 0)
    except (UserError, LookupError, struct.error, ValueError):
        return 0
