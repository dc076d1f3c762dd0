import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tfds_builder.commandline.errors import UserError
from tfds_builder.phantom.writer import mask_bytes
from tfds_builder.readers import lesion_mask
from tfds_builder.readers.lesion_mask import read_masks

SHAPE = (64, 24)


@pytest.fixture
def masks(rng) -> np.ndarray:
    return rng.integers(0, 256, (3, *SHAPE)).astype(np.uint8)


def encoded(pages: list[Image.Image], **options: object) -> bytes:
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:], **options)
    return file.getvalue()


def tiff(*pages: np.ndarray, deflate: bool = False, **tags: int) -> bytes:
    """Pages of one strip by hand; `tags`, such as t274=6, replace or add numbers."""
    content = b"II*\0"
    for page in pages:
        data = zlib.compress(page.tobytes()) if deflate else page.tobytes()
        start = len(content) + 4
        numbers = {256: page.shape[1], 257: page.shape[0], 258: page.dtype.itemsize * 8}
        numbers |= {259: 8 if deflate else 1, 262: 1, 273: start, 277: 1, 278: page.shape[0]}
        numbers |= {279: len(data)} | {int(name[1:]): value for name, value in tags.items()}
        entries = (struct.pack("<HHII", tag, 4, 1, n) for tag, n in sorted(numbers.items()))
        content += struct.pack("<I", start + len(data)) + data
        content += struct.pack("<H", len(numbers)) + b"".join(entries)
    return content + bytes(4)


def read(content: bytes, *frames: int, pages: int = 3) -> np.ndarray:
    return np.array(read_masks(content, frames or (1, 2, 3), pages, *SHAPE))


def refusal(content: bytes, *frames: int, pages: int = 3) -> str:
    with pytest.raises(UserError) as caught:
        read(content, *frames, pages=pages)
    message = str(caught.value)
    assert message.startswith("lesion mask")
    assert "\n" not in message
    return message


def outcome(content: bytes) -> str:
    try:
        return "read" if read(content).shape == (3, *SHAPE) else "of another shape"
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "packbits"])
def test_the_pages_of_the_frames_are_read(masks, compression):
    content = encoded([Image.fromarray(page) for page in masks], compression=compression)
    found = read_masks(content, (3, 1), 3, *SHAPE)
    assert [page.dtype for page in found] == [np.uint8] * 2
    np.testing.assert_array_equal(found, masks[[2, 0]])
    np.testing.assert_array_equal(read(content), masks)


def test_what_the_phantom_writes_is_read(rng):
    masks = rng.integers(0, 9, (2, 1024, 256)).astype(np.uint8)
    found = read_masks(mask_bytes(masks), (1, 2), 2, 1024, 256)
    np.testing.assert_array_equal(found, masks)


def test_lesion_numbers_of_a_palette_are_its_numbers(masks):
    pages = [Image.fromarray(page) for page in masks]
    for page in pages:
        page.putpalette([n * 7 % 256 for n in range(768)])
    np.testing.assert_array_equal(read(encoded(pages)), masks)


@pytest.mark.parametrize("deflate", [False, True])
def test_white_is_zero_shows_what_a_mask_means(masks, deflate):
    np.testing.assert_array_equal(read(tiff(*masks, deflate=deflate, t262=0)), 255 - masks)


@pytest.mark.parametrize("deflate", [False, True])
def test_a_mask_that_is_shown_turned_is_refused(masks, deflate):
    np.testing.assert_array_equal(read(tiff(*masks, deflate=deflate, t274=1)), masks)
    for orientation in range(2, 9):
        message = refusal(tiff(*masks, deflate=deflate, t274=orientation), 2)
        assert message.startswith(
            f"lesion mask, page 2: carries the orientation tag {orientation}: shown turned"
        )


def test_a_mask_must_have_the_images_pages_and_matrix(masks):
    content = encoded([Image.fromarray(page) for page in masks])
    assert refusal(content, 1, pages=2) == "lesion mask has 3 pages, but its image 2 frames"
    assert refusal(encoded([Image.fromarray(page[:-1]) for page in masks]), 2) == (
        "lesion mask has 63x24 pixels on page 2, but the image 64x24; "
        "a lesion mask has the matrix of its image"
    )
    turned = encoded([Image.fromarray(page.T.copy()) for page in masks])
    assert "lesion mask has 24x64 pixels on page 1, but the image 64x24" in refusal(turned)


def test_mask_of_an_image_wider_than_high_is_read(masks):
    content = encoded([Image.fromarray(page.T.copy()) for page in masks])
    columns, rows = masks[0].shape
    (page,) = read_masks(content, (1,), len(masks), rows, columns)
    np.testing.assert_array_equal(page, masks[0].T)


def test_a_mask_that_is_not_8_bits_of_one_channel_is_refused(masks):
    grey = [Image.fromarray(page) for page in masks]
    wide = [Image.fromarray(page.astype(np.uint16)) for page in masks]
    assert refusal(encoded(wide)) == "lesion mask, page 1: has 16 bits a pixel; 8 are read"
    one_bit = encoded([page.convert("1") for page in grey])
    assert refusal(one_bit, 2) == "lesion mask, page 2: has 1 bit a pixel; 8 are read"
    for mode in ("RGB", "LA", "CMYK"):
        assert refusal(encoded([page.convert(mode) for page in grey])).startswith(
            "lesion mask, page 1: "
        )
    lossy = encoded(grey, compression="jpeg")
    assert "compression 7, which is not read" in refusal(lossy)


def test_other_files_are_refused(masks):
    for content in (b"", b"no tiff", b"\x89PNG\r\n\x1a\n", mask_bytes(masks)[4:]):
        assert refusal(content) == "lesion mask is not a TIFF"


def test_pages_without_end_are_refused(masks):
    content = bytearray(tiff(*masks))
    content[-4:] = content[4:8]
    assert refusal(bytes(content)) == "lesion mask: damaged TIFF (pages in a loop)"


@pytest.mark.parametrize("deflate", [False, True])
def test_a_damaged_mask_is_read_or_refused_in_own_words(masks, rng, deflate):
    content = tiff(*masks, deflate=deflate)
    for _ in range(150):
        damaged = bytearray(content[: rng.integers(4, len(content))])
        for at in rng.integers(4, max(len(damaged), 5), 3):
            damaged[at : at + 1] = bytes([rng.integers(256)])
        said = outcome(bytes(damaged))
        assert said == "read" or said.startswith("lesion mask")
        assert len(said) < 300


def test_too_little_memory_is_no_fault_of_the_mask(masks, monkeypatch):
    def decoded(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(lesion_mask, "decoded", decoded)
    with pytest.raises(MemoryError):
        read(mask_bytes(masks))
