"""Damage to DICOM that bytes flipped at random would hardly ever do: headers that lie, and bombs.

In: a generator and a `Draft`, which is changed in place. Some damage leaves some drafts as they
are.
"""

import struct
import zlib
from collections.abc import Callable
from random import Random

from pydicom.uid import AllTransferSyntaxes, DeflatedExplicitVRLittleEndian, RLELossless

from tests.fuzz.draft import PIXEL_DATA, TRANSFER_SYNTAX, UNDEFINED, Draft
from tests.fuzz.seeds import CANARY

ROWS, COLUMNS, FRAMES = 0x00280010, 0x00280011, 0x00280008
_SAMPLES, _PHOTOMETRIC, _PLANAR = 0x00280002, 0x00280004, 0x00280006
_BITS = (0x00280100, 0x00280101, 0x00280102, 0x00280103)
_WINDOW_VECTOR, _DETECTOR_VECTOR, _WINDOWS, _DETECTORS = (
    0x00540010,
    0x00540020,
    0x00540011,
    0x00540021,
)
_DETECTOR_SEQUENCE, _FRAME_POINTER, _COUNTS_SEQUENCE = 0x00540022, 0x00280009, 0x00540016
_CHARACTER_SET, _IMAGE_TYPE, _CLASS, _MODALITY = 0x00080005, 0x00080008, 0x00080016, 0x00080060
_INSTANCE, _STUDY, _SERIES, _BURNED_IN = 0x00080018, 0x0020000D, 0x0020000E, 0x00280301
_NAME, _PATIENT, _AGE, _SEX = 0x00100010, 0x00100020, 0x00101010, 0x00100040
_MAKER, _STUDY_TEXT, _VIEW_POSITION = 0x00080070, 0x00081030, 0x00185101
_SPACING, _SLOPE, _INTERCEPT, _COUNTS = 0x00280030, 0x00281053, 0x00281052, 0x00180070
_GROUP_LENGTH, _META_CLASS = 0x00020000, 0x00020002

ABSURD = (0, 1, 2, 3, 7, 16, 63, 255, 256, 1024, 4096, 16384, 32768, 65535)
_ABSURD_TEXT = (
    *("0", "-1", "1e9", "1E400", "nan", "inf", "-inf", "0.0", "99999999999999999999", "2147483648"),
    *("", " ", "\\", "1\\2\\3", "\0\0", CANARY, "1" * 5000, "\x80\xff", "1_0", "0x10", "½"),
)
_SYNTAXES = tuple(str(one) for one in AllTransferSyntaxes)
_J2K_SIZE, _J2K_TILES = b"\xff\x4f\xff\x51", b"\xff\x90"
_JPEG_FRAMES = (b"\xff\xc0", b"\xff\xc1", b"\xff\xc2", b"\xff\xc3", b"\xff\xf7")
_ZEROS = 2**20

Damage = Callable[[Random, Draft], None]


def absurd_matrix(random: Random, draft: Draft) -> None:
    """Rows, Columns or NumberOfFrames that cannot be."""
    for tag in random.sample((ROWS, COLUMNS, FRAMES), random.choice((1, 1, 2, 3))):
        if tag == FRAMES:
            frames = random.choice((*map(str, ABSURD), *_ABSURD_TEXT))
            draft.put_text(tag, b"IS", frames)
        else:
            draft.put_number(tag, random.choice(ABSURD))


def absurd_pixel_format(random: Random, draft: Draft) -> None:
    """Bits, samples, sign, photometric interpretation."""
    for tag in random.sample((*_BITS, _SAMPLES, _PLANAR, _PHOTOMETRIC), random.randint(1, 3)):
        if tag == _PHOTOMETRIC:
            known = (
                "MONOCHROME1",
                "MONOCHROME2",
                "RGB",
                "YBR_FULL_422",
                "PALETTE COLOR",
                "YBR_ICT",
            )
            draft.put_text(tag, b"CS", random.choice((*known, CANARY, "")))
        else:
            draft.put_number(tag, random.choice((0, 1, 2, 3, 7, 8, 12, 15, 16, 24, 32, 64, 65535)))


def wrong_vectors(random: Random, draft: Draft) -> None:
    """Vectors, sequences and counts that do not fit the frames."""
    count = random.choice((0, 1, 2, 3, 4, 100, 10_000))
    vector = [random.choice((0, 1, 2, 3, 65535)) for _ in range(count)]
    match random.randrange(4):
        case 0:
            draft.put_number(random.choice((_WINDOW_VECTOR, _DETECTOR_VECTOR)), *vector)
        case 1:
            draft.put_number(random.choice((_WINDOWS, _DETECTORS)), random.choice(ABSURD))
        case 2:
            draft.put(random.choice((_DETECTOR_SEQUENCE, _COUNTS_SEQUENCE)), b"SQ", b"")
        case 3:
            draft.put_number(_FRAME_POINTER, *vector)
            draft.element(_FRAME_POINTER).kind = b"AT"


def absurd_length(random: Random, draft: Draft) -> None:
    """Elements that claim to be longer or shorter than they are."""
    for element in random.sample(draft.body, random.choice((1, 1, 1, 3))):
        near = len(element.value) + random.choice((-8, -2, -1, 1, 2, 8, 1000))
        absurd = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFE, UNDEFINED, max(near, 0))
        element.length = random.choice(absurd)


def nested_sequences(random: Random, draft: Draft) -> None:
    """A sequence in a sequence in a sequence, of undefined lengths, thousands deep."""
    depth = random.choice((50, 400, 900, 1100, 5000, 20_000))
    opening = struct.pack(draft.layout("2HI"), 0xFFFE, 0xE000, UNDEFINED)
    inner = struct.pack(draft.layout("2H"), 0x0040, 0xA730)
    inner += b"" if draft.implicit else b"SQ\0\0"
    inner += struct.pack(draft.layout("I"), UNDEFINED)
    closing = struct.pack(draft.layout("2HI2HI"), 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    closings = random.choice((0, depth // 2, depth, depth))
    value = opening + (inner + opening) * (depth - 1) + closing * closings
    tag = random.choice((0x00081140, _DETECTOR_SEQUENCE, 0x0040A730, 0x00091001))
    draft.put(tag, random.choice((b"SQ", b"SQ", b"UN")), value)
    draft.element(tag).length = UNDEFINED


def many_parts(random: Random, draft: Draft) -> None:
    """A sequence of very many items, or a data set of very many elements."""
    count = random.choice((1000, 20_000, 200_000))
    if random.random() < 0.5:
        item = struct.pack(draft.layout("2HI"), 0xFFFE, 0xE000, 0)
        end = struct.pack(draft.layout("2HI"), 0xFFFE, 0xE0DD, 0)
        tag = random.choice((_DETECTOR_SEQUENCE, 0x00081140))
        draft.put(tag, b"SQ", item * count)
        if random.random() < 0.5:
            draft.put(tag, b"SQ", item * count + end)
            draft.element(tag).length = UNDEFINED
        return
    # What follows the first one's value is read as elements, though it is kept as one here.
    element = random.choice(draft.body)
    element.length = len(element.value)
    first, step = element.tag + 1, random.choice((0, 1))
    layout = draft.layout("2HI" if draft.implicit else "2H2sH")
    middle = (len(CANARY),) if draft.implicit else (b"LO", len(CANARY))
    tags = ((first + step * n) & 0xFFFFFFFF for n in range(count))
    heads = (struct.pack(layout, tag >> 16, tag & 0xFFFF, *middle) for tag in tags)
    element.value += b"".join(head + CANARY.encode() for head in heads)


def huge_values(random: Random, draft: Draft) -> None:
    """Values of millions of parts; under UN a short length does not bound them."""
    part, separator = random.choice(((b"1", b"\\"), (b"A", b"^"), (b"\x1b$B", b"="), (b"\1", b"")))
    value = (part + separator) * random.choice((10_000, 100_000, 2_000_000))
    numbers = (_SPACING, _SLOPE, FRAMES, _COUNTS, _DETECTOR_VECTOR, _FRAME_POINTER)
    for tag in random.sample((*numbers, _NAME, _STUDY_TEXT, _IMAGE_TYPE, _CHARACTER_SET), 2):
        draft.put(tag, random.choice((b"UN", b"UN", b"UT")), value)


def undelimited(random: Random, draft: Draft) -> None:
    """Undefined lengths whose end never comes, or comes twice."""
    end = struct.pack(draft.layout("2HI"), 0xFFFE, 0xE0DD, 0)
    sequences = [one for one in draft.body if one.kind == b"SQ" or one.length == UNDEFINED]
    if not sequences:
        return
    element = random.choice(sequences)
    element.length = UNDEFINED
    element.value = random.choice((element.value.removesuffix(end), element.value + end + end))


def rearranged(random: Random, draft: Draft) -> None:
    """Elements that are missing, twice there, or out of order."""
    for _ in range(random.choice((1, 1, 2, 5))):
        group = random.choice((draft.body, draft.body, draft.body, draft.meta)) or draft.body
        match random.randrange(4):
            case 0 if len(group) > 1:
                del group[random.randrange(len(group))]
            case 1:
                group.insert(random.randrange(len(group)), random.choice(group))
            case 2:
                random.shuffle(group)
            case _:
                other = random.choice(draft.body)
                random.choice(draft.body).value = other.value[: 2**16]


def strange_kind(random: Random, draft: Draft) -> None:
    """Elements of another value representation than they should have, or of none that exists."""
    kinds = (b"SQ", b"OB", b"OW", b"UN", b"US", b"FD", b"AT", b"DS", b"IS", b"PN", b"UT", b"??")
    for element in random.sample(draft.body, random.choice((1, 2, 4))):
        element.kind = random.choice((*kinds, b"\0\0", b"\xff\xff"))


def strange_text(random: Random, draft: Draft) -> None:
    """A character set that does not exist or does not fit, and text that is none in it."""
    sets = (
        "ISO 2022 IR 87",
        "ISO_IR 192",
        "GB18030",
        "ISO 2022 IR 13\\ISO 2022 IR 87",
        "utf_7",
        "",
    )
    nonsense = ("ISO_IR 999", CANARY, "\\" * 500, "\x1b$B" * 50, "rot13", "idna", "punycode", "\0")
    draft.put_text(_CHARACTER_SET, b"CS", random.choice(sets + nonsense))
    for tag in random.sample((_NAME, _STUDY_TEXT, _MAKER, _PATIENT), 2):
        value = random.choice((random.randbytes(200), b"\x1b$B\x1b(J\x1b" * 30, b"^=\\" * 500))
        draft.put(tag, b"PN" if tag == _NAME else b"LO", value)


def absurd_numbers(random: Random, draft: Draft) -> None:
    """Numbers kept as text that are none, or not finite."""
    kinds = {_SPACING: b"DS", _SLOPE: b"DS", _INTERCEPT: b"DS", _COUNTS: b"IS", _AGE: b"AS"}
    for tag in random.sample(tuple(kinds), random.choice((1, 1, 2))):
        text = random.choice(_ABSURD_TEXT)
        if tag == _SPACING and random.random() < 0.5:
            text = f"{text}\\{random.choice(_ABSURD_TEXT)}"
        draft.put_text(tag, kinds[tag], text)


def planted_word(random: Random, draft: Draft) -> None:
    """A patient's name where a code belongs."""
    kinds = {_IMAGE_TYPE: b"CS", _CLASS: b"UI", _MODALITY: b"CS", _BURNED_IN: b"CS", _SEX: b"CS"}
    kinds |= {_PHOTOMETRIC: b"CS", _VIEW_POSITION: b"CS", TRANSFER_SYNTAX: b"UI", _AGE: b"AS"}
    kinds |= {_INSTANCE: b"UI", _STUDY: b"UI", _SERIES: b"UI", _META_CLASS: b"UI"}
    for tag in random.sample(tuple(kinds), random.choice((1, 1, 3))):
        form = random.choice(("{}", "1.2.{}", "A\\B\\{}", "../../{}", "{}\n{}", "YES\\{}", "{}\0"))
        draft.put_text(tag, kinds[tag], form.replace("{}", CANARY))


def other_syntax(random: Random, draft: Draft) -> None:
    """A transfer syntax that the data is not in."""
    unknown = ("1.2.3.4", "1.2.840.10008.1.2.4.999", "", "1.2." + "9" * 70, f"1.2.{CANARY}")
    draft.put_text(TRANSFER_SYNTAX, b"UI", random.choice((*_SYNTAXES, *_SYNTAXES, *unknown)))


def damaged_file_header(random: Random, draft: Draft) -> None:
    """A file header without its group length, with a wrong one, or none at all."""
    match random.randrange(4):
        case 0:
            draft.meta = [one for one in draft.meta if one.tag != _GROUP_LENGTH]
        case 1:
            length = random.choice((0, 1, 100, 0x7FFFFFFF, UNDEFINED))
            draft.put(_GROUP_LENGTH, b"UL", struct.pack("<I", length))
        case 2:
            draft.has_header = not draft.has_header
        case 3:
            draft.meta = draft.meta[: random.randrange(len(draft.meta) + 1)]


def deflate_bomb(random: Random, draft: Draft) -> None:
    """Deflated data that inflates to gigabytes, in the data set's place or behind it."""
    draft.put_text(TRANSFER_SYNTAX, b"UI", DeflatedExplicitVRLittleEndian + "\0")
    draft.deflated, draft.big, draft.implicit = True, False, False
    draft.bomb = zeros_deflated(random.choice((16, 256, 1024, 4096)))
    pixels = draft.find(PIXEL_DATA)
    if pixels and random.random() < 0.5:
        pixels.length = random.choice((0x7FFFFFFE, 0xFFFFFFF0, 2**28))


def zeros_deflated(mebibytes: int) -> bytes:
    """Raw deflated data of so many mebibytes of zeros, made without ever holding them."""
    compressor = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    one = compressor.compress(bytes(_ZEROS)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return one * mebibytes + zlib.compressobj(wbits=-zlib.MAX_WBITS).flush()


def rle_lies(random: Random, draft: Draft) -> None:
    """Segment tables that point elsewhere, and runs that never end."""
    fragments = draft.fragments
    syntax = draft.find(TRANSFER_SYNTAX)
    if len(fragments) < 2 or not syntax or syntax.value.rstrip(b"\0") != RLELossless.encode():
        return
    nth = random.randrange(1, len(fragments))
    # An earlier damage may have cut it short.
    if len(fragments[nth]) < 64:
        return
    table = list(struct.unpack("<16I", fragments[nth][:64]))
    data = fragments[nth][64:]
    match random.randrange(5):
        case 0:
            table[0] = random.choice((0, 1, 3, 15, 16, 255, UNDEFINED))
        case 1:
            place = random.randrange(1, 16)
            table[place] = random.choice((0, 1, 63, 65, len(data), 2**31, UNDEFINED))
        case 2:
            table[1], table[2] = table[2], table[1]
        case 3:
            data = b"\x81\0" * random.choice((1000, 100_000, 500_000))
        case 4:
            data = bytes(random.choice((0x7F, 0x80, 0x81, 0xFF)) for _ in range(2000))
    fragments[nth] = struct.pack("<16I", *table) + data
    draft.put_fragments(fragments)


def rle_bomb(random: Random, draft: Draft) -> None:
    """A header and runs that agree on a matrix of the largest size, in few bytes."""
    rows, columns = random.choice(((4096, 4096), (16384, 1024), (65535, 256), (1024, 256)))
    draft.put_number(ROWS, rows)
    draft.put_number(COLUMNS, columns)
    draft.put_number(_BITS[0], 16)
    draft.put_text(FRAMES, b"IS", "1")
    draft.put_text(TRANSFER_SYNTAX, b"UI", RLELossless + "\0" * (len(RLELossless) % 2))
    runs = b"\x81\0" * (rows * columns // 128 * random.choice((1, 1, 4)))
    table = struct.pack("<16I", 2, 64, 64 + len(runs), *[0] * 13)
    draft.put(PIXEL_DATA, b"OB", b"")
    draft.element(PIXEL_DATA).length = UNDEFINED
    draft.put_fragments([b"", table + runs + runs])


def codestream_lies(random: Random, draft: Draft) -> None:
    """A codestream that claims another size than the header, absurd tiles or many components."""
    fragments = draft.fragments
    if len(fragments) < 2:
        return
    nth = random.randrange(1, len(fragments))
    lying = bytearray(fragments[nth])
    if _J2K_SIZE in lying[:256]:
        _lie_in_j2k(random, lying, lying.index(_J2K_SIZE) + 2)
    elif not _lie_in_jpeg(random, lying):
        return
    fragments[nth] = bytes(lying)
    draft.put_fragments(fragments)


def agreed_lies(random: Random, draft: Draft) -> None:
    """A header and a codestream that claim the same absurd size."""
    fragments = draft.fragments
    if len(fragments) < 2:
        return
    rows, columns = random.choice(
        ((4096, 4096), (8192, 2048), (65535, 256), (1024, 256), (16384, 1024), (4096, 16))
    )
    fragments = [b"", *(bytearray(one) for one in fragments[1:])]
    for codestream in fragments[1:]:
        if _J2K_SIZE in codestream[:256]:
            at = codestream.index(_J2K_SIZE) + 2
            struct.pack_into(">2I", codestream, at + 6, columns, rows)
            tile = random.choice(((columns, rows), (256, 256), (64, 64), (columns, rows)))
            struct.pack_into(">2I", codestream, at + 22, *tile)
            continue
        at = _frame_header(codestream)
        if at is None:
            return
        struct.pack_into(">2H", codestream, at + 5, rows, columns)
    draft.put_number(ROWS, rows)
    draft.put_number(COLUMNS, columns)
    if random.random() < 0.5:
        draft.put_text(FRAMES, b"IS", "1")
        fragments = fragments[:2]
    draft.put_fragments([bytes(one) for one in fragments])


def _lie_in_j2k(random: Random, codestream: bytearray, at: int) -> None:
    """Changes the SIZ segment (at its marker), or a tile part or a coding style behind it."""
    wide = (0, 1, 2, 127, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
    for _ in range(random.choice((1, 1, 2))):
        match random.randrange(5):
            case 0 | 1:
                place = at + 6 + 4 * random.randrange(8)
                struct.pack_into(">I", codestream, place, random.choice(wide))
            case 2:
                components = random.choice((0, 2, 3, 4, 255, 16384, 65535))
                struct.pack_into(">H", codestream, at + 38, components)
            case 3:
                place = at + 40 + random.randrange(3)
                codestream[place] = random.choice((0, 1, 7, 37, 127, 128, 255))
            case 4:
                start = codestream.find(b"\xff\x52", at)
                start = start if start >= 0 else at
                codestream[start + 4 + random.randrange(10)] = random.randrange(256)


def _frame_header(codestream: bytes | bytearray) -> int | None:
    """Where the frame header of a JPEG or JPEG-LS lies; the seeds have it near their beginning."""
    places = [codestream.find(marker, 0, 1024) for marker in _JPEG_FRAMES]
    return min((place for place in places if place >= 0), default=None)


def _lie_in_jpeg(random: Random, codestream: bytearray) -> bool:
    at = _frame_header(codestream)
    if at is None:
        return False
    match random.randrange(5):
        case 0:
            struct.pack_into(">H", codestream, at + 5, random.choice(ABSURD))
        case 1:
            struct.pack_into(">H", codestream, at + 7, random.choice(ABSURD))
        case 2:
            codestream[at + 9] = random.choice((0, 2, 3, 4, 255))
        case 3:
            codestream[at + 4] = random.choice((0, 1, 2, 12, 16, 17, 255))
        case 4:
            # What follows: component numbers, sampling factors, tables, the scan's header.
            codestream[at + 10 + random.randrange(40)] = random.randrange(256)
    return True


def odd_fragments(random: Random, draft: Draft) -> None:
    """Offset tables that lie, and fragments that are empty, missing, too many or swapped."""
    fragments = draft.fragments
    if len(fragments) < 2:
        return
    match random.randrange(5):
        case 0:
            offsets = [random.choice((0, 1, 8, 2**31, UNDEFINED)) for _ in fragments[1:]]
            fragments[0] = struct.pack(f"<{len(offsets)}I", *offsets)
        case 1:
            fragments[random.randrange(1, len(fragments))] = b""
        case 2:
            del fragments[random.randrange(len(fragments))]
        case 3:
            fragments[1:1] = [b""] * random.choice((1, 100, 50_000))
        case 4:
            fragments += fragments[1:] * random.choice((1, 50))
    draft.put_fragments(fragments)


def odd_pixels(random: Random, draft: Draft) -> None:
    """Pixel data that is too short, too long, all one value, or the brightest there can be."""
    pixels = draft.find(PIXEL_DATA)
    if pixels is None:
        return
    size = len(pixels.value)
    match random.randrange(4):
        case 0:
            pixels.value = pixels.value[: random.randrange(size + 1)]
        case 1:
            pixels.value += bytes(random.choice((1, 2, 1000, 2**20)))
        case 2:
            pixels.value = random.choice((b"\0", b"\xff", b"\x80")) * size
        case 3:
            at = random.randrange(size + 1)
            pixels.value = pixels.value[:at] + random.randbytes(1000) + pixels.value[at + 1000 :]


def absurd_overlay(random: Random, draft: Draft) -> None:
    """An overlay of absurd size, and lookup tables that nothing fits."""
    group = random.choice((0x60000000, 0x601E0000))
    draft.put_number(group + 0x0010, random.choice(ABSURD))
    draft.put_number(group + 0x0011, random.choice(ABSURD))
    draft.put(group + 0x3000, b"OW", random.randbytes(random.choice((0, 1, 1000))))
    draft.put_number(0x00283002, random.choice(ABSURD), 0, random.choice(ABSURD))
    draft.body.sort(key=lambda one: one.tag)


DICOM_DAMAGE: dict[str, Damage] = {
    function.__name__.replace("_", " "): function
    for function in (
        absurd_matrix,
        absurd_pixel_format,
        wrong_vectors,
        absurd_length,
        nested_sequences,
        many_parts,
        huge_values,
        undelimited,
        rearranged,
        strange_kind,
        strange_text,
        absurd_numbers,
        planted_word,
        other_syntax,
        damaged_file_header,
        deflate_bomb,
        rle_lies,
        rle_bomb,
        codestream_lies,
        agreed_lies,
        odd_fragments,
        odd_pixels,
        absurd_overlay,
    )
}
