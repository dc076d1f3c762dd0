"""Reads the numbers of a TIFF, and of EXIF and multi-picture data, which are TIFFs without pixels.

In: the content. Out: where its pages lie, and the numbers under a tag. TIFF 6.0, and BigTIFF.
"""

import struct
from dataclasses import dataclass

import numpy as np

from tfds_builder.commandline.errors import UserError
from tfds_builder.readers.raster.container import MOST_PARTS, damaged

TIFF_STARTS = {
    b"II*\0": ("<", "H", "HHI4s", "I"),
    b"MM\0*": (">", "H", "HHI4s", "I"),
    b"II+\0": ("<", "Q", "HHQ8s", "Q"),
    b"MM\0+": (">", "Q", "HHQ8s", "Q"),
}
"""Byte order, and how a directory's number of entries, an entry and a pointer are laid out."""

ORIENTATION, MP_IMAGES = 274, 0xB001

_MOST_PAGES = 1024
_SHORT, _LONG = 3, 4
_TYPES = {1: "u1", _SHORT: "u2", _LONG: "u4", 16: "u8"}


@dataclass(frozen=True)
class Directory:
    """The numbers of one directory.

    Attributes:
      content: the file.
      order: '<' or '>'.
      entries: tag -> type, number of values, and the field that holds or locates them.
    """

    content: bytes
    order: str
    entries: dict[int, tuple[int, int, bytes]]

    def __contains__(self, tag: int) -> bool:
        return tag in self.entries

    def values(self, tag: int) -> np.ndarray:
        """All whole numbers of a tag that is there."""
        kind, count, field = self.entries[tag]
        dtype = np.dtype(self.order + _TYPES[kind])
        size = count * dtype.itemsize
        if size <= len(field):
            return np.frombuffer(field[:size], dtype)
        at = int.from_bytes(field, "little" if self.order == "<" else "big")
        if at + size > len(self.content):
            raise damaged("TIFF", "truncated")
        return np.frombuffer(self.content, dtype, count, at)

    def one(self, tag: int, default: int | None = None) -> int:
        """The only or first number of a tag."""
        if tag not in self and default is not None:
            return default
        return int(self.values(tag)[0])

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


class Tiff:
    """Finds the directories of what begins with one of `TIFF_STARTS`."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._order, self._count, self._entry, self._pointer = TIFF_STARTS[content[:4]]

    def first(self) -> int:
        """Where the first directory lies."""
        return self._number(self._pointer, struct.calcsize(self._pointer))

    def pages(self) -> list[int]:
        """Where each page's directory lies."""
        found: dict[int, None] = {}
        at = self.first()
        while at:
            if at in found:
                raise damaged("TIFF", "pages in a loop")
            if len(found) == _MOST_PAGES:
                raise UserError(f"has more than {_MOST_PAGES} pages; save each view as a file")
            found[at] = None
            _, _, end = self._extent(at)
            at = self._number(self._pointer, end)
        if not found:
            raise damaged("TIFF", "no pages")
        return list(found)

    def directory(self, at: int) -> Directory:
        """The directory that lies there."""
        count, start, end = self._extent(at)
        entries: dict[int, tuple[int, int, bytes]] = {}
        if count > MOST_PARTS or end > len(self._content):
            raise damaged("TIFF", "directory")
        layout = self._order + self._entry
        for tag, kind, number, field in struct.iter_unpack(layout, self._content[start:end]):
            entries.setdefault(tag, (kind, number, field))
        return Directory(self._content, self._order, entries)

    def _extent(self, at: int) -> tuple[int, int, int]:
        """A directory's number of entries, where they begin, and where they end."""
        count, start = self._number(self._count, at), at + struct.calcsize(self._count)
        return count, start, start + count * struct.calcsize(self._order + self._entry)

    def _number(self, layout: str, at: int) -> int:
        return struct.unpack_from(self._order + layout, self._content, at)[0]


def exif_value(content: bytes, tag: int) -> int:
    """A number in the first directory of EXIF or multi-picture data; 0 where there is none."""
    try:
        tiff = Tiff(content)
        return tiff.directory(tiff.first()).one(tag, 0)
    except (UserError, LookupError, struct.error, ValueError):
        return 0
