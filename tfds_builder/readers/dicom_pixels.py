"""Decodes the pixels of a DICOM data set to counts, with one decoder for each transfer syntax.

In: a data set whose header was checked. Out: counts and what was changed, or a UserError in fixed
words. What compressed data claims of itself is checked first: decoders believe it, and some crash.
"""

import re

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import generate_fragments, generate_frames, parse_basic_offsets

# Documented as a name of this package, which does not list its names.
from pydicom.pixels import get_decoder  # pyright: ignore[reportPrivateImportUsage]
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEGExtended12Bit, RLELossless

from tfds_builder.commandline.errors import UserError
from tfds_builder.readers.codestream import (
    J2K_START,
    JPEG_START,
    claimed_size,
    is_cut_off,
    lacks_tables,
)
from tfds_builder.readers.elements import numbers

_LOSSY_SYNTAXES = (
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.203",
)
# Transfer syntaxes, pydicom's names of the decoders for them, and the package to install. Only the
# first decoder that is there is used: where it refuses a file, another one would crash on it, as
# GDCM does on damaged JPEG-LS.
_DECODERS = (
    (r"\.4\.(80|81)$", ("pyjpegls",), "pyjpegls"),
    (r"\.4\.(90|91|201|202|203)$", ("pylibjpeg",), "pylibjpeg-openjpeg"),
    (r"\.4\.(50|51)$", ("pylibjpeg", "pillow", "gdcm"), "pillow"),
    (r"\.4\.(57|70)$", ("gdcm", "pylibjpeg"), "python-gdcm (or pylibjpeg-libjpeg, GPL)"),
    (r"\.5$", ("pylibjpeg", "pydicom"), "pylibjpeg-rle"),
)
MASKED = "bits above BitsStored were set (an overlay?) and are masked"
# Of the range of the pixels: a scan is mostly empty, so its middle value lies by the empty end.
_EMPTY_SHARE = 0.25
# What a decoder may be given, as a multiple of the pixels' own size: lossless coding of noise
# adds little, and an RLE run expands 64-fold.
_MOST_OF_RAW_SIZE = 2
# Lossy coders keep the sum, unless they round away most of few counts, or grey values were scaled
# to 8 bits before.
_MOST_LOSS = 0.05


def require_decoder(dataset: Dataset) -> None:
    """Refuses, by its header, what no installed decoder reads.

    The UserError names the transfer syntax, and the package to install where there is one.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.name == syntax:
        raise UserError("is in an unknown transfer syntax")
    if not syntax.is_compressed or syntax == DeflatedExplicitVRLittleEndian:
        return
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise UserError(f"is compressed as {syntax.name}, which is not read") from None
    if not decoder.is_available or not _plugin(syntax):
        _, package = _decoders(syntax)
        raise UserError(f"is compressed as {syntax.name}; pip install {package} to read it")
    deep = dataset.BitsStored > 8
    if syntax == JPEGExtended12Bit and deep and "pylibjpeg" not in decoder.available_plugins:
        raise UserError(
            f"is compressed as {syntax.name} of 12 bits; pip install pylibjpeg-libjpeg (GPL) to "
            "read it"
        )


def _plugin(syntax: UID) -> str | None:
    """Which of pydicom's decoders is used, if there is one."""
    available = get_decoder(syntax).available_plugins
    return next((name for name in _decoders(syntax)[0] if name in available), None)


def _decoders(syntax: UID) -> tuple[tuple[str, ...], str]:
    """Names of decoders, and the package to install."""
    found = (one[1:] for one in _DECODERS if re.search(one[0], syntax))
    return next(found, ((), ""))


def decode_counts(
    dataset: Dataset, expected: tuple[int, int, int]
) -> tuple[np.ndarray, float, tuple[str, ...], tuple[str, ...]]:
    """All frames as unsigned counts (frames, rows, columns), counts ratio, notes, and findings.

    `expected` is frames, rows and columns by the header; the ratio is that of a `Scintigram`.

    Raises:
      UserError: the pixels are damaged, of another size, or no counts.
    """
    if "PixelData" not in dataset:
        raise UserError("has no PixelData; the file may be truncated")
    _check_data(dataset, expected)
    stored = _decoded(dataset)
    if stored.ndim == 2:
        stored = stored[None]
    if stored.shape != expected:
        raise UserError(f"decodes to {stored.shape}, but the header says {expected}")
    stored, findings = _masked(dataset, stored)
    stored, notes = _uninverted(dataset, stored)
    stored, rescale_notes = _rescaled(dataset, stored)
    if stored.dtype.kind != "u" and (lowest := stored.min()) < 0:
        raise UserError(
            f"has negative pixels (lowest {lowest}), so they are not counts; "
            "was it compressed with loss?"
        )
    notes += rescale_notes
    if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        notes += ("colour table left out: stored values are counts",)
    total = _counts_accumulated(dataset)
    ratio = int(stored.sum(dtype=np.int64)) / total if total else float("nan")
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in _LOSSY_SYNTAXES or str(dataset.get("LossyImageCompression") or "") == "01":
        notes += ("compressed with loss: counts are approximate",)
        if abs(ratio - 1) > _MOST_LOSS:
            notes += ("compressed with loss: counts do not add up",)
        ratio = float("nan")  # No checksum, as counts were lost anyway.
    return stored, ratio, notes, findings


def held_frames(dataset: Dataset, pixels: int) -> int:
    """How many frames of so many pixels there are, whatever NumberOfFrames says; 0: not known."""
    content = dataset.get("PixelData")
    if not content:
        return 0
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return len(content) // (pixels * dataset.BitsAllocated // 8)
    offsets = parse_basic_offsets(content)
    if offsets:
        return len(offsets)
    fragments = generate_fragments(content)
    next(fragments)  # The empty offset table.
    # Each frame of RLE is one fragment.
    starts = b"" if syntax == RLELossless else (JPEG_START, J2K_START)
    return sum(one.startswith(starts) for one in fragments)


def _decoded(dataset: Dataset) -> np.ndarray:
    """The pixels as they are stored, in this machine's byte order."""
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        plugin = _plugin(syntax) if syntax.is_encapsulated else None
        # What lies above BitsStored is masked here, alike in every syntax.
        dataset.pixel_array_options(correct_unused_bits=False, decoding_plugin=plugin or "")
        stored = dataset.pixel_array
    except MemoryError:
        raise
    except BaseException as error:
        # A panic of a decoder in Rust (pylibjpeg-rle) is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"has damaged pixels: no decoder of {syntax.name} can read them") from error
    return stored.astype(stored.dtype.newbyteorder("="), copy=False)


def _check_data(dataset: Dataset, expected: tuple[int, int, int]) -> None:
    """Refuses data that is not of the header's size before a decoder believes it."""
    syntax = dataset.file_meta.TransferSyntaxUID
    frames, rows, columns = expected
    allocated = dataset.BitsAllocated
    raw, held = frames * rows * columns * allocated // 8, len(dataset.PixelData)
    if not syntax.is_encapsulated:
        if held < raw:
            raise UserError(f"holds {held} of {raw} bytes of pixels; the file is truncated")
        return
    if held > _MOST_OF_RAW_SIZE * raw + 2**16:
        raise UserError("has more compressed data than pixels: the header or the data is wrong")
    if syntax == RLELossless:
        return
    codestreams = list(generate_frames(dataset.PixelData, number_of_frames=frames))
    if len(codestreams) != frames:
        raise UserError(f"holds {len(codestreams)} compressed frames, not {frames}")
    for codestream in codestreams:
        *size, bits = claimed_size(codestream) or (0,)
        if size != [rows, columns, 1]:
            says = "x".join(map(str, size)) or "nothing readable"
            raise UserError(
                f"is {rows}x{columns} by its header, but its codestream says {says}; "
                "export it again"
            )
        if not 1 <= bits <= allocated:
            raise UserError(
                f"has {allocated} bits a pixel by its header, but its codestream says {bits}; "
                "export it again"
            )
        if is_cut_off(codestream):
            raise UserError("holds a compressed frame that ends too early; export it again")
        if lacks_tables(codestream):
            raise UserError("holds a compressed frame without its tables; export it again")


def _masked(dataset: Dataset, stored: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """The pixels without the bits above BitsStored, where old cameras drew, even names.

    A signed pixel keeps its sign. Pixels that add up to CountsAccumulated are counts as they are;
    those that lie under a higher HighBit (PS3.5 8.1.1) are moved down.
    """
    allocated = 8 * stored.dtype.itemsize
    bits = dataset.BitsStored
    if not 0 < bits < allocated or int(stored.sum(dtype=np.int64)) == _counts_accumulated(dataset):
        return stored, ()
    shift = dataset.HighBit + 1 - bits
    if 0 < shift <= allocated - bits and not (stored & ((1 << shift) - 1)).any():
        stored = stored >> shift
        shift = 0
    masked = (stored << (allocated - bits)) >> (allocated - bits)
    if np.array_equal(masked, stored):
        return stored, ()
    if shift:
        raise UserError(
            f"has {bits} BitsStored but HighBit {dataset.HighBit}, so its counts may lie in other "
            "bits; export it again"
        )
    return masked, (MASKED,)


def _uninverted(dataset: Dataset, stored: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """MONOCHROME1 says how to show counts, dark on white; some store inverted counts under it.

    CountsAccumulated tells; where it is missing, the empty part of the picture does.
    """
    if dataset.get("PhotometricInterpretation") != "MONOCHROME1":
        return stored, ()
    total = _counts_accumulated(dataset)
    if int(stored.sum(dtype=np.int64)) == total:
        return stored, ("MONOCHROME1 not inverted: pixels add up to CountsAccumulated",)
    highest = (1 << dataset.BitsStored) - 1
    is_signed = bool(dataset.PixelRepresentation)
    inverted = highest - stored.astype(np.int64)
    if not is_signed and int(inverted.sum()) == total:
        return inverted, ("MONOCHROME1 inverted",)
    lowest, brightest = int(stored.min()), int(stored.max())
    middle = float(np.median(stored))
    if middle - lowest <= _EMPTY_SHARE * (brightest - lowest):
        return stored, ("MONOCHROME1 not inverted: its empty part is stored low",)
    if is_signed:
        raise UserError("is MONOCHROME1 with signed pixels; export it as MONOCHROME2")
    if middle < (1 - _EMPTY_SHARE) * highest:
        raise UserError(
            "is MONOCHROME1, and its pixels do not tell whether they are inverted counts; export "
            "it as MONOCHROME2"
        )
    return inverted, ("MONOCHROME1 inverted",)


def _rescaled(dataset: Dataset, stored: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    said = dataset.get("RescaleSlope")
    slope = 1.0 if said in (None, "") else float(said)
    intercept = float(dataset.get("RescaleIntercept") or 0)
    if (slope, intercept) == (1, 0):
        return stored, ()
    values = stored * slope + intercept
    if slope == 0 or not np.isfinite(values).all() or np.abs(values).max() > 2**40:
        raise UserError("has an unusable RescaleSlope or RescaleIntercept")
    counts = np.rint(values)
    exact = np.allclose(counts, values, rtol=0, atol=1e-3)
    note = "rescaled" if exact else "rescaled and rounded to whole counts"
    return counts.astype(np.int64), (note,)


def _counts_accumulated(dataset: Dataset) -> int | None:
    """The sum over all frames, where the header says it."""
    said = numbers(dataset, "CountsAccumulated")
    return int(said[0]) if len(said) == 1 and said[0] > 0 else None
