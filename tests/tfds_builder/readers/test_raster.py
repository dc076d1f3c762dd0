import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from tfds_builder.commandline.errors import UserError
from tfds_builder.readers.raster import check_raster, is_raster, read_raster, reader
from tfds_builder.readers.raster.png import _ADAM7
from tfds_builder.readers.scintigram import MAX_PIXELS, Scintigram

SHAPE = (64, 24)
SECRET = "Doe^Jane"
NOTES = ("grey values of a picture, not counts", "pixel spacing unknown")


@pytest.fixture
def words(rng) -> np.ndarray:
    return rng.integers(0, 2**16, SHAPE).astype(np.uint16)


@pytest.fixture
def grey(rng) -> np.ndarray:
    return rng.integers(0, 256, SHAPE).astype(np.uint8)


def encoded(picture: np.ndarray | Image.Image, format: str = "PNG", **options: object) -> bytes:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    pixels: np.ndarray,
    *,
    shape: tuple[int, int] | None = None,
    colour: int = 0,
    bits: int | None = None,
    interlaced: bool = False,
    before: bytes = b"",
) -> bytes:
    """A PNG by hand; `before` goes before the pixels, `shape` is what the header claims."""
    rows, columns = shape or pixels.shape[:2]
    bits = bits or pixels.dtype.itemsize * 8
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    lines = b"".join(
        b"\0" + line.astype(line.dtype.newbyteorder(">")).tobytes()
        for row, column, down, across in passes
        for line in pixels[row::down, column::across]
    )
    header = struct.pack(">2I5B", columns, rows, bits, colour, 0, 0, interlaced)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + before
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def tiff(
    pixels: np.ndarray, order: str = "<", big: bool = False, deflate: bool = False, **tags: int
) -> bytes:
    """A TIFF of one strip by hand; `tags`, such as t262=0, replace or add numbers."""
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if deflate else data
    start = 16 if big else 8
    forms = {"u": 1, "i": 2, "f": 3}
    numbers = {
        256: pixels.shape[1],
        257: pixels.shape[0],
        258: pixels.dtype.itemsize * 8,
        259: 8 if deflate else 1,
        262: 1,
        273: start,
        277: 1,
        278: pixels.shape[0],
        279: len(data),
        339: forms[pixels.dtype.kind],
    } | {int(name[1:]): value for name, value in tags.items()}
    at = start + len(data)
    if big:
        head = struct.pack(order + "HHHQ", 43, 8, 0, at)
        entry, count = "HHQQ", "Q"
    else:
        head, entry, count = struct.pack(order + "HI", 42, at), "HHII", "H"
    entries = [
        struct.pack(order + entry, tag, 16 if big else 4, 1, value)
        for tag, value in sorted(numbers.items())
    ]
    mark = b"II" if order == "<" else b"MM"
    directory = struct.pack(order + count, len(entries)) + b"".join(entries) + bytes(8)
    return mark + head + data + directory


def native(content: bytes, *arguments: object) -> np.ndarray:
    (view,) = read_raster(content, *arguments).views
    return view.native


def notes(content: bytes) -> tuple[str, ...]:
    return read_raster(content, view="anterior").views[0].notes


def refusal(content: bytes, *arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        read_raster(content, *arguments)
    message = str(caught.value)
    assert SECRET not in message
    assert "\n" not in message
    return message


def test_the_view_and_the_frame_are_the_manifests(words):
    found = read_raster(png(words), view="posterior")
    assert (found.frames, found.patient_id, found.sex, found.age) == (1, "", None, None)
    assert np.isnan(found.pixel_spacing_mm)
    assert np.isnan(found.counts_ratio)
    (view,) = found.views
    assert (view.frame, view.name, view.rule, view.notes) == (1, "posterior", "manifest", NOTES)
    (view,) = read_raster(png(words), 1).views
    assert (view.name, view.rule) == ("unknown", "none")
    assert view.notes == (
        "view unknown: no rule names it; give it in the manifest's 'view'",
        *NOTES,
    )
    assert "frame 2 is asked for, but the file has 1" in refusal(png(words), 2)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_png_comes_through_exactly(words, dtype, interlaced):
    pixels = words.astype(dtype)
    for content in (png(pixels, interlaced=interlaced), encoded(pixels)):
        assert is_raster(content)
        found = native(content)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32, np.int32, np.float32])
def test_a_tiff_comes_through_exactly(words, dtype, order, big, deflate):
    pixels = (words // 2 if dtype == np.int16 else words).astype(dtype)
    content = tiff(pixels, order, big, deflate)
    assert is_raster(content)
    if deflate and order == ">" and pixels.dtype.itemsize == 4:
        assert "compressed big-endian 32-bit TIFF" in refusal(content)
        return
    found = native(content)
    assert found.dtype in (np.uint8, np.uint16)
    np.testing.assert_array_equal(found, pixels)
    assert ("floating point values, all whole" in notes(content)) == (dtype == np.float32)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("predictor", [1, 2])
def test_the_tiff_compressions_without_loss_are_read(words, compression, predictor):
    directory = ImageFileDirectory_v2()
    directory[317] = predictor
    content = encoded(words, "TIFF", compression=compression, tiffinfo=directory)
    np.testing.assert_array_equal(native(content), words)


def test_strips_and_tiles_are_put_together(rng):
    words = rng.integers(0, 2**16, (1024, 256)).astype(np.uint16)
    for compression in (None, "tiff_lzw"):
        content = encoded(words, "TIFF", compression=compression)
        np.testing.assert_array_equal(native(content), words)
    squares = words.reshape(16, 64, 8, 32).swapaxes(1, 2).reshape(-1, 64, 32)
    for order, deflate in (("<", False), (">", True)):
        tiles = [square.astype(order + "u2").tobytes() for square in squares]
        tiles = [zlib.compress(tile) if deflate else tile for tile in tiles]
        sizes = [len(tile) for tile in tiles]
        offsets = np.cumsum([8, *sizes[:-1]])
        arrays = b"".join(np.array(one, order + "u4").tobytes() for one in (offsets, sizes))
        at = 8 + sum(sizes)
        numbers = [(256, 1, 256), (257, 1, 1024), (258, 1, 16), (259, 1, 8 if deflate else 1)]
        numbers += [(262, 1, 1), (322, 1, 32), (323, 1, 64), (324, 128, at), (325, 128, at + 512)]
        entries = b"".join(struct.pack(order + "HHII", tag, 4, *rest) for tag, *rest in numbers)
        head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, at + 1024)
        directory = struct.pack(order + "H", len(numbers)) + entries + bytes(4)
        content = head + b"".join(tiles) + arrays + directory
        np.testing.assert_array_equal(native(content), words)
        # Each tile lies in the file, but all of them are all of it: much to inflate, 128 times.
        same = np.array([[8] * 128, [sum(sizes)] * 128], order + "u4").tobytes()
        assert refusal(content.replace(arrays, same)) == "damaged TIFF (sizes of strips or tiles)"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero_is_inverted_once(words, dtype, order, deflate):
    pixels = words.astype(dtype)
    content = tiff(pixels, order, deflate=deflate, t262=0)
    np.testing.assert_array_equal(native(content), pixels.max() - pixels)
    assert notes(content) == (NOTES[0], "WhiteIsZero inverted", NOTES[1])


@pytest.mark.parametrize("highest", [255, 1000])
def test_a_scan_dark_on_white_is_turned_to_more_is_larger(rng, highest):
    counts = np.zeros((256, 64), np.uint16)
    counts[40:200, 16:48] = rng.poisson(highest / 20, (160, 32))
    counts[60:64, 30:34] = highest
    shown = (highest - counts).astype(np.uint8 if highest == 255 else np.uint16)
    assert notes(png(shown)) == (NOTES[0], "dark on white: inverted", NOTES[1])
    np.testing.assert_array_equal(native(png(shown)), counts)
    np.testing.assert_array_equal(native(png(counts)), counts)
    # Stored as counts, and only shown dark on white.
    np.testing.assert_array_equal(native(tiff(counts, t262=0)), counts)


def test_each_page_of_a_tiff_is_a_frame(words):
    pages = [Image.fromarray(words), Image.fromarray(words[::-1].copy())]
    content = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    found = read_raster(content, 2, "posterior")
    assert (found.frames, found.views[0].frame) == (2, 2)
    np.testing.assert_array_equal(found.views[0].native, words[::-1])
    np.testing.assert_array_equal(native(content, 1), words)
    assert refusal(content) == "has 2 pages; add a row with 'frame' for each view"
    assert "frame 3 is asked for, but the file has 2" in refusal(content, 3)
    assert [check_raster(content, page) for page in (1, 2)] == [2, 2]
    with pytest.raises(UserError, match="frame 3"):
        check_raster(content, 3)


def test_a_jpeg_is_read_with_its_loss_noted(rng):
    smooth = np.linspace(0, 200, 256 * 64).reshape(256, 64).astype(np.uint8)
    for options in ({}, {"progressive": True}, {"restart_marker_rows": 2}):
        content = encoded(smooth, "JPEG", quality=95, **options)
        np.testing.assert_allclose(native(content).astype(int), smooth, atol=6)
        assert notes(content) == (
            NOTES[0],
            "compressed with loss: counts are approximate",
            NOTES[1],
        )


@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG"])
def test_equal_channels_are_grey(grey, format):
    smooth = np.sort(grey, axis=None).reshape(SHAPE)
    colour = Image.fromarray(smooth).convert("RGB")
    content = encoded(colour, format)
    np.testing.assert_allclose(native(content).astype(int), smooth, atol=3 * (format == "JPEG"))
    assert "colour channels are equal: read as grey" in notes(content)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_a_palette_is_looked_up(grey, format):
    image = Image.fromarray(grey)
    image.putpalette([255 - n // 3 for n in range(768)])
    content = encoded(image, format)
    np.testing.assert_array_equal(native(content), 255 - grey)
    assert "grey palette: its grey values are read" in notes(content)
    image.putpalette([n % 256 for n in range(768)])
    assert refusal(encoded(image, format)).startswith("is a colour image")


def test_a_palette_of_few_entries_is_looked_up(grey):
    few = Image.fromarray(grey % 4)
    few.putpalette([20 * (n // 3) for n in range(12)])
    content = encoded(few, bits=2)
    np.testing.assert_array_equal(native(content), grey % 4 * 20)
    shorter = content.replace(
        chunk(b"PLTE", bytes(20 * (n // 3) for n in range(12))), chunk(b"PLTE", bytes(6))
    )
    assert shorter != content
    assert "palette" in refusal(shorter)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_dropped_where_opaque_and_refused_elsewhere(grey, mode, format):
    image = Image.fromarray(grey).convert(mode)
    content = encoded(image, format)
    np.testing.assert_array_equal(native(content), grey)
    assert "opaque: transparency dropped" in notes(content)
    alpha = np.full(SHAPE, 255, np.uint8)
    alpha[5, 5] = 254
    image.putalpha(Image.fromarray(alpha))
    assert "transparent pixels" in refusal(encoded(image, format))


def test_pictures_that_are_not_grey_values_are_refused(rng, grey, words):
    colour = Image.fromarray(rng.integers(0, 256, (*SHAPE, 3)).astype(np.uint8))
    for content in (
        encoded(colour),
        encoded(colour, "TIFF"),
        encoded(colour, "JPEG"),
        encoded(colour.convert("CMYK"), "JPEG"),
        encoded(colour.convert("CMYK"), "TIFF"),
        encoded(colour.convert("YCbCr"), "TIFF"),
    ):
        assert refusal(content).startswith("is a colour image (a screen capture?)")
    one_bit = Image.fromarray(grey > 99)
    for content in (encoded(one_bit), encoded(one_bit, "TIFF")):
        assert refusal(content) == "has 1 bit a pixel; 8 or 16 are read"
    assert "transparent" in refusal(encoded(grey, transparency=7))
    deep = np.stack([words] * 3, axis=-1)
    assert "16 bits a channel" in refusal(png(deep, colour=2, bits=16))
    assert "16 bits a channel" in refusal(tiff(words, t277=3, t262=2))
    assert "64 bits" in refusal(tiff(words.astype(np.float64)))
    assert "12 bits" in refusal(tiff(words, t258=12))
    assert "not unsigned" in refusal(tiff(grey, t339=2))


def test_values_that_16_bits_do_not_hold_are_refused(words):
    for change, dtype in ((-1, np.int16), (-1, np.int32), (2**16, np.int32), (2**16, np.float32)):
        pixels = (words % 2**15).astype(dtype)
        pixels[3, 3] = change
        assert "outside 0 to 65535" in refusal(tiff(pixels))
    for broken in (0.5, np.nan, np.inf, -np.inf):
        pixels = words.astype(np.float32)
        pixels[3, 3] = broken
        assert "whole numbers" in refusal(tiff(pixels))


def with_orientation(orientation: int, grey: np.ndarray) -> dict[str, bytes]:
    exif = Image.Exif()
    exif[274] = orientation
    # Pillow's TIFF writer leaves the tag where it finds it.
    return {
        "PNG": encoded(grey, exif=exif),
        "JPEG": encoded(grey, "JPEG", exif=exif),
        "TIFF": tiff(grey, t274=orientation),
    }


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF"])
def test_an_orientation_tag_is_neither_obeyed_nor_ignored(grey, format):
    upright = with_orientation(1, grey)[format]
    assert native(upright).shape == SHAPE
    for orientation in range(2, 9):
        message = refusal(with_orientation(orientation, grey)[format])
        assert message.startswith(f"carries the orientation tag {orientation}")


@pytest.mark.parametrize("write", [png, tiff, lambda pixels: encoded(pixels, "JPEG")])
def test_the_matrix_is_checked_before_decoding(grey, write):
    assert refusal(write(grey.T.copy())).startswith("is 64x24, wider than high")
    assert "at least 16x16" in refusal(write(grey[:, :15].copy()))


def test_a_huge_claim_costs_nothing(grey):
    jpeg = bytearray(encoded(grey, "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">2H", 65500, 65500)
    assert f"more than {MAX_PIXELS}" in refusal(bytes(jpeg))
    for columns in (2**12 + 1, 2**31 - 1):
        started = time.monotonic()
        assert f"more than {MAX_PIXELS}" in refusal(png(grey, shape=(columns, columns)))
        assert f"more than {MAX_PIXELS}" in refusal(tiff(grey, t256=columns, t257=columns))
        assert time.monotonic() - started < 0.5


def test_pictures_that_stop_short_are_refused(grey, words):
    # A complete zlib stream of too few rows, for which Pillow makes up zeros.
    assert refusal(png(words, shape=(80, 24))) == "damaged PNG (truncated)"
    assert refusal(png(words, shape=(80, 24), interlaced=True)) == "damaged PNG (truncated)"
    coloured = Image.fromarray(grey).convert("RGB")
    for picture, options in ((grey, {}), (grey, {"progressive": True}), (coloured, {})):
        jpeg = encoded(picture, "JPEG", **options)
        start = jpeg.index(b"\xff\xda")
        early = jpeg[: start + (len(jpeg) - start) * 2 // 3] + b"\xff\xd9"
        assert refusal(early) == "damaged JPEG (truncated)"
        taller = bytearray(jpeg)
        at = jpeg.index(b"\xff\xc2" if options else b"\xff\xc0")
        taller[at + 5 : at + 7] = struct.pack(">H", SHAPE[0] + 40)
        assert refusal(bytes(taller)) == "damaged JPEG (truncated)"
    assert refusal(tiff(words, t257=65)).startswith("damaged TIFF")
    assert refusal(tiff(words, deflate=True, t257=65)).startswith("damaged TIFF")


@pytest.mark.parametrize("write", [png, tiff, lambda pixels: encoded(pixels, "JPEG")])
def test_too_little_memory_is_no_fault_of_the_picture(grey, monkeypatch, write):
    def too_little(*_: object) -> None:
        raise MemoryError

    content = write(grey)
    monkeypatch.setattr(reader, "check_frame", too_little)
    monkeypatch.setattr("tfds_builder.readers.raster.tiff.check_frame", too_little)
    with pytest.raises(MemoryError):
        check_raster(content)
    monkeypatch.undo()
    monkeypatch.setattr(Image.Image, "load", too_little)
    with pytest.raises(MemoryError):
        read_raster(content)


def outcome(content: bytes) -> str:
    try:
        return str(read_raster(content).views[0].notes)
    except UserError as error:
        return str(error)


def samples(grey: np.ndarray, words: np.ndarray) -> list[bytes]:
    directory = ImageFileDirectory_v2()
    directory[270] = directory[315] = SECRET
    exif = Image.Exif()
    exif[315] = SECRET
    text = chunk(b"tEXt", b"Patient\0" + SECRET.encode())
    palette = Image.fromarray(grey)
    palette.putpalette([n // 3 for n in range(768)])
    return [
        png(words, before=text),
        encoded(palette, exif=exif),
        encoded(Image.fromarray(grey).convert("RGBA")),
        tiff(words),
        tiff(grey, ">", big=True, deflate=True),
        encoded(words, "TIFF", compression="tiff_lzw", tiffinfo=directory),
        encoded(grey, "JPEG", exif=exif, comment=SECRET),
        encoded(grey, "JPEG", progressive=True),
    ]


def test_a_file_cut_off_anywhere_is_refused_or_whole(grey, words, rng):
    for content in samples(grey, words):
        whole = native(content)
        for end in (*rng.integers(4, len(content), 30), len(content) - 1):
            try:
                found = native(content[:end])
            except UserError:
                continue
            np.testing.assert_array_equal(found, whole)


def test_a_file_damaged_anywhere_is_read_or_refused_in_own_words(grey, words, rng):
    for content in samples(grey, words):
        for _ in range(60):
            damaged = bytearray(content)
            for at in rng.integers(0, len(content), rng.integers(1, 6)):
                damaged[at] = rng.integers(256)
            said = outcome(bytes(damaged))
            assert SECRET not in said
            assert len(said) < 500


def test_damaged_pixels_of_a_png_are_noticed(words, rng):
    content = png(words)
    start, end = content.index(b"IDAT"), content.index(b"IEND") - 8
    for at in rng.integers(start + 4, end, 40):
        damaged = bytearray(content)
        damaged[at] ^= 1 << rng.integers(8)
        assert refusal(bytes(damaged)) == "damaged PNG (checksum)"


def test_nothing_written_in_the_file_comes_out(grey, words):
    for content in samples(grey, words):
        found: Scintigram = read_raster(content)
        assert SECRET not in repr(found)


def test_texts_that_inflate_are_never_inflated(words):
    bomb = zlib.compress(bytes(50 * 2**20), 9)
    before = b"".join(
        (
            chunk(b"zTXt", b"a\0\0" + bomb),
            chunk(b"iTXt", b"b\0\1\0\0\0" + bomb),
            chunk(b"iCCP", b"c\0\0" + bomb),
        )
        * 20
    )
    started = time.monotonic()
    np.testing.assert_array_equal(native(png(words, before=before)), words)
    assert time.monotonic() - started < 0.5


def test_pixels_that_inflate_beyond_the_picture_are_never_inflated(words):
    rest = chunk(b"IDAT", zlib.compress(bytes(50 * 2**20), 9))
    content = png(words)
    at = content.index(b"IEND") - 4
    started = time.monotonic()
    np.testing.assert_array_equal(native(content[:at] + rest + content[at:]), words)
    packed = zlib.compress(words.tobytes() + bytes(50 * 2**20), 9)
    strip = tiff(words, deflate=True, t273=8, t279=len(packed))
    swollen = strip[:8] + packed + strip[8:]
    moved = swollen[:4] + struct.pack("<I", struct.unpack("<I", strip[4:8])[0] + len(packed))
    np.testing.assert_array_equal(native(moved + swollen[8:]), words)
    assert time.monotonic() - started < 3


def test_several_pictures_in_one_file_are_refused(grey):
    frames = [Image.fromarray(grey), Image.fromarray(255 - grey)]
    animated = encoded(frames[0], save_all=True, append_images=frames[1:])
    assert refusal(animated).startswith("is an animation of 2 frames")
    together = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert refusal(together).startswith("holds 2 pictures (MPO)")


@pytest.mark.parametrize(
    "tags, said",
    [
        ({"t259": 6}, "compression 6"),
        ({"t259": 7}, "compression 7"),
        ({"t259": 34925}, "compression 34925"),
        ({"t266": 2}, "reverse order"),
        ({"t273": 2**31}, "truncated"),
        ({"t279": 2**32 - 1}, "truncated"),
        ({"t279": 10}, "sizes of strips"),
        ({"t278": 1}, "number of strips"),
        ({"t278": 0}, "strips"),
        ({"t322": 2**20, "t323": 2**20, "t324": 8, "t325": 9}, "tiles"),
        ({"t322": 1, "t323": 1, "t324": 8, "t325": 9}, "tiles"),
        ({"t322": 16, "t323": 16, "t324": 8, "t325": 9}, "number of strips or tiles"),
        ({"t277": 2**31}, "16 bits a channel"),
        ({"t258": 2**31}, "bits a pixel"),
        ({"t317": 2**31}, "predictor"),
    ],
)
def test_a_tiff_that_lies_is_refused(words, tags, said):
    assert said in refusal(tiff(words, deflate="t317" in tags, **tags))


def test_a_tiff_with_endless_pages_is_refused(words):
    content = tiff(words)
    first = struct.unpack("<I", content[4:8])[0]
    (entries,) = struct.unpack("<H", content[first : first + 2])
    pointer = first + 2 + 12 * entries
    loop = content[:pointer] + struct.pack("<I", first) + content[pointer + 4 :]
    assert refusal(loop) == "damaged TIFF (pages in a loop)"
    # Directories of no entries, each of which points to the next.
    start = len(content)
    chain = b"".join(struct.pack("<HI", 0, start + 6 * (n + 1)) for n in range(200_000))
    long = content[:pointer] + struct.pack("<I", start) + content[pointer + 4 :] + chain
    started = time.monotonic()
    assert refusal(long) == "has more than 1024 pages; save each view as a file"
    assert time.monotonic() - started < 0.5


@pytest.mark.usefixtures("unchecked")  # Checks of a hint at every segment take their time too.
def test_jpegs_made_to_take_long_are_refused(grey):
    content = encoded(grey, "JPEG", progressive=True)
    end = len(content) - 2
    start = content.rindex(b"\xff\xda")
    many = content[:end] + content[start:end] * 100 + content[end:]
    assert refusal(many) == "damaged JPEG (too many scans)"
    comments = content[:2] + b"\xff\xfe\0\2" * 200_000 + content[2:]
    started = time.monotonic()
    assert "segments" in refusal(comments)
    assert time.monotonic() - started < 0.5


@pytest.mark.parametrize("content", [b"", b"\xff\xd8", b"II", b"GIF89a", b"DICM", bytes(200)])
def test_other_files_are_no_rasters(content):
    assert not is_raster(content)
    assert refusal(content) == "is not a PNG, TIFF or JPEG"


@pytest.mark.parametrize("start", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0+"])
def test_a_start_alone_is_refused(start):
    for content in (start, start + b"\0" * 100, start + b"\xff" * 100):
        assert is_raster(content)
        assert refusal(content).startswith("damaged ")
