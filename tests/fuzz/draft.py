"""A DICOM file as a list of elements that can be made to say anything.

In: the bytes of a sound file. Out: the bytes of one that pydicom would refuse to write.
"""

import struct
import zlib
from dataclasses import dataclass

from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

UNDEFINED = 0xFFFFFFFF
TRANSFER_SYNTAX = 0x00020010
PIXEL_DATA = 0x7FE00010

_LONG_KINDS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT")


@dataclass
class Element:
    """One element; `length` is what it claims, None for the truth."""

    tag: int
    kind: bytes
    value: bytes
    length: int | None = None


@dataclass
class Draft:
    """A file in the making.

    Attributes:
      meta: the elements of the file header.
      body: the elements of the data set.
      big: whether the data set is big endian.
      implicit: whether it is without value representations.
      deflated: whether it is deflated.
      has_header: whether preamble and file header are written.
      bomb: raw deflated data to follow the data set, where that is deflated.
    """

    meta: list[Element]
    body: list[Element]
    big: bool = False
    implicit: bool = False
    deflated: bool = False
    has_header: bool = True
    bomb: bytes = b""

    @classmethod
    def of(cls, content: bytes) -> "Draft":
        """Takes a sound file apart."""
        if content[128:132] != b"DICM":
            return cls([], _elements(content, "<", True)[0], implicit=True, has_header=False)
        meta, end = _elements(content, "<", False, 132, only_group=2)
        syntax = (
            next(one.value for one in meta if one.tag == TRANSFER_SYNTAX).rstrip(b"\0").decode()
        )
        deflated = syntax == DeflatedExplicitVRLittleEndian
        body = zlib.decompress(content[end:], -zlib.MAX_WBITS) if deflated else content[end:]
        big, implicit = syntax == ExplicitVRBigEndian, syntax == ImplicitVRLittleEndian
        elements, _ = _elements(body, ">" if big else "<", implicit)
        return cls(meta, elements, big, implicit, deflated)

    def encode(self) -> bytes:
        """The file."""
        order = ">" if self.big else "<"
        body = b"".join(_encoded(one, order, self.implicit) for one in self.body)
        if self.deflated:
            compressor = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
            end = zlib.Z_FULL_FLUSH if self.bomb else zlib.Z_FINISH
            body = compressor.compress(body) + compressor.flush(end) + self.bomb
        if not self.has_header:
            return body
        return (
            bytes(128) + b"DICM" + b"".join(_encoded(one, "<", False) for one in self.meta) + body
        )

    def find(self, tag: int) -> Element | None:
        """The first element of this tag, or None."""
        return next((one for one in (*self.meta, *self.body) if one.tag == tag), None)

    def element(self, tag: int) -> Element:
        """The first element of this tag.

        Raises:
          KeyError: there is none.
        """
        element = self.find(tag)
        if element is None:
            raise KeyError(f"({tag >> 16:04X},{tag & 0xFFFF:04X})")
        return element

    def put(self, tag: int, kind: bytes, value: bytes) -> None:
        """Gives an element another value, or adds it."""
        element = self.find(tag)
        if element:
            element.kind, element.value = kind, value
            return
        group = self.meta if tag >> 16 == 2 else self.body
        group.append(Element(tag, kind, value))
        group.sort(key=lambda one: one.tag)

    def number(self, tag: int) -> int:
        """The value of an element of two bytes; 0 where there is none."""
        element = self.find(tag)
        return struct.unpack(self.layout("H"), element.value[:2])[0] if element else 0

    def put_number(self, tag: int, *values: int) -> None:
        """Sets an element of two-byte numbers."""
        packed = struct.pack(self.layout(f"{len(values)}H"), *(one & 0xFFFF for one in values))
        self.put(tag, b"US", packed)

    def put_text(self, tag: int, kind: bytes, text: str) -> None:
        """Sets an element of text, padded to an even length."""
        value = text.encode("latin-1")
        self.put(tag, kind, value + b" " * (len(value) % 2))

    def layout(self, layout: str) -> str:
        """A layout of `struct` in this file's byte order."""
        return (">" if self.big else "<") + layout

    @property
    def fragments(self) -> list[bytes]:
        """The fragments of encapsulated pixel data, the offset table first; else nothing."""
        pixels = self.find(PIXEL_DATA)
        if pixels is None or pixels.length != UNDEFINED:
            return []
        found, at = [], 0
        while pixels.value[at : at + 4] == b"\xfe\xff\x00\xe0":
            end = at + 8 + int.from_bytes(pixels.value[at + 4 : at + 8], "little")
            found.append(pixels.value[at + 8 : end])
            at = end
        return found

    def put_fragments(self, fragments: list[bytes]) -> None:
        """Sets the pixel data, the offset table first."""
        items = (b"\xfe\xff\x00\xe0" + struct.pack("<I", len(one)) + one for one in fragments)
        self.element(PIXEL_DATA).value = b"".join(items) + b"\xfe\xff\xdd\xe0\0\0\0\0"


def _elements(
    content: bytes, order: str, implicit: bool, at: int = 0, only_group: int | None = None
) -> tuple[list[Element], int]:
    """The elements at the top level of a sound data set, and where they end."""
    found = []
    while at + 8 <= len(content):
        group, number = struct.unpack_from(order + "2H", content, at)
        if only_group is not None and group != only_group:
            break
        kind = b"" if implicit else content[at + 4 : at + 6]
        if implicit:
            (length,), start = struct.unpack_from(order + "I", content, at + 4), at + 8
        elif kind in _LONG_KINDS:
            (length,), start = struct.unpack_from(order + "I", content, at + 8), at + 12
        else:
            (length,), start = struct.unpack_from(order + "H", content, at + 6), at + 8
        claimed = length if length == UNDEFINED else None
        end = _end_of_undefined(content, order, start) if claimed else start + length
        found.append(Element(group << 16 | number, kind, content[start:end], claimed))
        at = end
    return found, at


def _end_of_undefined(content: bytes, order: str, start: int) -> int:
    """Where a value ends that a delimiter ends; the seeds have none inside another."""
    delimiter = struct.pack(order + "2HI", 0xFFFE, 0xE0DD, 0)
    return content.index(delimiter, start) + len(delimiter)


def _encoded(element: Element, order: str, implicit: bool) -> bytes:
    head = struct.pack(order + "2H", element.tag >> 16, element.tag & 0xFFFF)
    length = len(element.value) if element.length is None else element.length
    if implicit:
        return head + struct.pack(order + "I", length) + element.value
    if element.kind in _LONG_KINDS:
        return head + element.kind + b"\0\0" + struct.pack(order + "I", length) + element.value
    return head + element.kind + struct.pack(order + "H", length & 0xFFFF) + element.value
