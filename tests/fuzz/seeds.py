"""The sound files that are damaged: one of every format, transfer syntax and layout that is read.

Out: their bytes. They are made here of Poisson counts over the outline of a body, and are the same
every time. Every text and UID holds the word CANARY, which no reason for a refusal may repeat.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from pydicom import config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import JPEG2000 as JPEG2000Lossy
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

CANARY = "CANARY"
DICOM, PNG, TIFF, JPEG = "DICOM", "PNG", "TIFF", "JPEG"

_NM_STORAGE = "1.2.840.10008.5.1.4.1.1.20"
_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_VIEW_CODES = {"anterior": "399321004", "posterior": "399001007"}
_VIEWS = tuple(_VIEW_CODES)
_USUAL = (512, 128)
# Centre down and across, half height and half width, in heights and widths of the image; level.
_BODY = (
    (0.10, 0.00, 0.06, 0.16, 4.0),
    (0.33, 0.00, 0.18, 0.26, 3.0),
    (0.36, 0.36, 0.20, 0.06, 2.0),
    (0.36, -0.36, 0.20, 0.06, 2.0),
    (0.73, 0.13, 0.21, 0.09, 2.5),
    (0.73, -0.13, 0.21, 0.09, 2.5),
    (0.31, 0.00, 0.19, 0.04, 12.0),
    (0.49, 0.02, 0.03, 0.08, 40.0),
)
_BACKGROUND = 0.2


@dataclass(frozen=True)
class Seed:
    """A sound file.

    Attributes:
      name: what is special about it.
      kind: DICOM, PNG, TIFF or JPEG.
      content: its bytes.
      frame: the frame that a manifest must name, or None.
    """

    name: str
    kind: str
    content: bytes
    frame: int | None = None


def make_seeds() -> tuple[Seed, ...]:
    """All of them, in a fixed order."""
    settings = config.settings
    before = settings.reading_validation_mode, settings.writing_validation_mode
    settings.reading_validation_mode = settings.writing_validation_mode = config.IGNORE
    try:
        return (*_plain(), *_unusual(), *_compressed(), *_pictures())
    finally:
        settings.reading_validation_mode, settings.writing_validation_mode = before


def body_counts(rows: int, columns: int, views: int, seed: int = 0) -> np.ndarray:
    """Poisson counts of a body, uint16 (views, rows, columns)."""
    down = np.linspace(0, 1, rows)[:, None]
    across = np.linspace(-0.5, 0.5, columns)[None]
    mean = np.full((rows, columns), _BACKGROUND)
    for y, x, height, width, level in _BODY:
        mean += level * (((down - y) / height) ** 2 + ((across - x) / width) ** 2 < 1)
    generator = np.random.default_rng(seed)
    return generator.poisson(mean, (views, rows, columns)).astype(np.uint16)


def _plain() -> Iterator[Seed]:
    for name, syntax in (
        ("implicit", ImplicitVRLittleEndian),
        ("explicit", ExplicitVRLittleEndian),
        ("big endian", ExplicitVRBigEndian),
        ("deflated", DeflatedExplicitVRLittleEndian),
    ):
        for views in (1, 2):
            counts = body_counts(*_USUAL, views)
            yield _dicom(f"{name}, {views} views", _dataset(counts), syntax)
    yield _dicom("small", _dataset(body_counts(256, 64, 1)), ExplicitVRLittleEndian)
    yield _dicom("large", _dataset(body_counts(1024, 256, 2)), ExplicitVRLittleEndian)
    yield _dicom("8 bits", _dataset(_bytes(body_counts(*_USUAL, 2))), ImplicitVRLittleEndian)
    signed = _dataset(body_counts(*_USUAL, 1).astype(np.int16))
    yield _dicom("signed", signed, ExplicitVRLittleEndian)


def _unusual() -> Iterator[Seed]:
    counts = body_counts(*_USUAL, 2)
    for name, change in (
        ("GE", _name_views_as_ge_does),
        ("overlay", _add_overlay),
        ("undefined lengths", _leave_lengths_undefined),
        ("rescaled", lambda dataset: _set(dataset, RescaleSlope="2", RescaleIntercept="1")),
        ("capture", lambda dataset: _set(dataset, SOPClassUID=_CAPTURE)),
    ):
        dataset = _dataset(counts)
        change(dataset)
        yield _dicom(name, dataset, ExplicitVRLittleEndian)
    small = _bytes(counts)
    inverted = _dataset(255 - small, PhotometricInterpretation="MONOCHROME1")
    inverted.CountsAccumulated = int(small.sum())
    yield _dicom("MONOCHROME1", inverted, ImplicitVRLittleEndian)
    windows = _dataset(np.concatenate([counts, counts]), EnergyWindowVector=[1, 1, 2, 2])
    windows.DetectorVector = [1, 2, 1, 2]
    yield _dicom("two energy windows", windows, ExplicitVRLittleEndian)
    whole = _dicom("", _dataset(counts), ImplicitVRLittleEndian).content
    # What is left without preamble and file header begins with the data set's first element.
    yield Seed("no file header", DICOM, whole[whole.index(b"\x08\0\x08\0") :])


def _compressed() -> Iterator[Seed]:
    for views in (1, 2):
        counts = body_counts(*_USUAL, views)
        for name, syntax, error, ratios in (
            ("RLE", RLELossless, None, None),
            ("JPEG-LS", JPEGLSLossless, None, None),
            ("JPEG-LS near-lossless", JPEGLSNearLossless, 2, None),
            ("JPEG 2000", JPEG2000Lossless, None, None),
            ("JPEG 2000 lossy", JPEG2000Lossy, None, [8.0]),
        ):
            dataset = _dataset(counts)
            dataset.compress(syntax, generate_instance_uid=False, jls_error=error, j2k_cr=ratios)
            yield _dicom(f"{name}, {views} views", dataset, syntax)
        for name, syntax in (("lossless", JPEGLossless), ("lossless SV1", JPEGLosslessSV1)):
            frames = [_lossless_jpeg(one, syntax) for one in counts]
            yield _encapsulated(f"JPEG {name}, {views} views", counts, frames, syntax)
        small = _bytes(counts)
        frames = [_picture(one, JPEG, quality=90) for one in small]
        for name, syntax in (("baseline", JPEGBaseline8Bit), ("extended", JPEGExtended12Bit)):
            yield _encapsulated(f"JPEG {name}, {views} views", small, frames, syntax)
    yield from _fragmented()


def _fragmented() -> Iterator[Seed]:
    counts = body_counts(*_USUAL, 2)
    frames = [_lossless_jpeg(one, JPEGLosslessSV1) for one in counts]
    dataset = _dataset(counts)
    dataset.PixelData = encapsulate(frames, fragments_per_frame=4)
    yield _dicom("fragments", dataset, JPEGLosslessSV1)
    dataset = _dataset(counts)
    pixels, offsets, lengths = encapsulate_extended(frames)
    _set(dataset, PixelData=pixels)
    _set(dataset, ExtendedOffsetTable=offsets, ExtendedOffsetTableLengths=lengths)
    yield _dicom("extended offset table", dataset, JPEGLosslessSV1)


def _pictures() -> Iterator[Seed]:
    wide, *pages = body_counts(*_USUAL, 3)
    grey = _bytes(wide)
    text = PngInfo()
    text.add_text(CANARY, CANARY)
    text.add_text("Comment", CANARY * 100, zip=True)
    yield Seed("8 bits", PNG, _picture(grey, PNG, pnginfo=text))
    yield Seed("16 bits", PNG, _picture(wide, PNG, pnginfo=text))
    yield Seed("large", PNG, _picture(body_counts(1024, 256, 1)[0], PNG))
    palette = Image.fromarray(grey).convert("P")
    yield Seed("palette", PNG, _saved(palette, PNG))
    yield Seed("colour", PNG, _saved(Image.fromarray(grey).convert("RGB"), PNG))
    yield Seed("transparency", PNG, _saved(Image.fromarray(grey).convert("RGBA"), PNG))
    tags = ImageFileDirectory_v2()
    tags[270] = CANARY
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        name = compression or "uncompressed"
        yield Seed(name, TIFF, _picture(wide, TIFF, compression=compression, tiffinfo=tags))
    yield Seed("8 bits", TIFF, _picture(grey, TIFF, compression="tiff_lzw", tiffinfo=tags))
    others = [Image.fromarray(page) for page in pages]
    many = _picture(wide, TIFF, save_all=True, append_images=others, compression="tiff_lzw")
    yield Seed("three pages", TIFF, many, frame=2)
    yield Seed("32 bits", TIFF, _picture(wide.astype(np.int32), TIFF))
    yield Seed("floating point", TIFF, _picture(wide.astype(np.float32), TIFF))
    yield Seed("grey", JPEG, _picture(grey, JPEG, quality=90, comment=CANARY))
    yield Seed("progressive", JPEG, _picture(grey, JPEG, progressive=True, comment=CANARY))
    colour = Image.fromarray(grey).convert("RGB")
    yield Seed("colour", JPEG, _saved(colour, JPEG, exif=_exif(), comment=CANARY))


def _bytes(counts: np.ndarray) -> np.ndarray:
    return np.minimum(4 * counts, 255).astype(np.uint8)


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = CANARY, 1
    return exif


def _picture(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    return _saved(Image.fromarray(pixels), kind, **options)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _set(dataset: Dataset, **elements: object) -> None:
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)


def _dataset(counts: np.ndarray, **elements: object) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    frames, rows, columns = counts.shape
    _set(
        dataset,
        SpecificCharacterSet="ISO_IR 100",
        ImageType=["ORIGINAL", "PRIMARY", "WHOLE BODY", "EMISSION"],
        SOPClassUID=_NM_STORAGE,
        SOPInstanceUID=f"1.2.{CANARY}.1",
        StudyInstanceUID=f"1.2.{CANARY}.2",
        SeriesInstanceUID=f"1.2.{CANARY}.3",
        Modality="NM",
        StudyDate="20200229",
        AccessionNumber=CANARY,
        Manufacturer=CANARY,
        InstitutionName=CANARY,
        StudyDescription=CANARY,
        SeriesDescription=CANARY,
        PatientName=f"{CANARY}^{CANARY}",
        PatientID=CANARY,
        PatientBirthDate="19500101",
        PatientSex="F",
        PatientAge="070Y",
        PatientComments=CANARY,
        CountsAccumulated=int(counts.sum()),
        NumberOfFrames=frames,
        FrameIncrementPointer=[0x00540010, 0x00540020],
        Rows=rows,
        Columns=columns,
        PixelSpacing=[2048 / rows, 2048 / rows],
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        BitsAllocated=counts.dtype.itemsize * 8,
        BitsStored=counts.dtype.itemsize * 8,
        HighBit=counts.dtype.itemsize * 8 - 1,
        PixelRepresentation=int(counts.dtype.kind == "i"),
        EnergyWindowVector=[1] * frames,
        NumberOfEnergyWindows=1,
        DetectorVector=list(range(1, frames + 1)),
        NumberOfDetectors=frames,
        DetectorInformationSequence=[_detector(view) for view in _VIEWS[:frames]],
        EnergyWindowInformationSequence=[_window(126.5, 154.5), _window(80.0, 100.0)],
        RadiopharmaceuticalInformationSequence=[_radiopharmaceutical()],
        PixelData=counts.tobytes(),
    )
    _set(dataset, **elements)
    return dataset


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    _set(code, CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)
    return code


def _detector(view: str) -> Dataset:
    detector = Dataset()
    code = _code(_VIEW_CODES[view], "SCT", CANARY)
    # Angles count from the patient's back.
    angle = 180 if view == "anterior" else 0
    _set(detector, CollimatorGridName=CANARY, StartAngle=angle, ViewCodeSequence=[code])
    return detector


def _window(lower: float, upper: float) -> Dataset:
    limits, window = Dataset(), Dataset()
    _set(limits, EnergyWindowLowerLimit=lower, EnergyWindowUpperLimit=upper)
    _set(window, EnergyWindowName=CANARY, EnergyWindowRangeSequence=[limits])
    return window


def _radiopharmaceutical() -> Dataset:
    radiopharmaceutical = Dataset()
    technetium = _code("72454003", "SCT", "^99m^Technetium")
    _set(radiopharmaceutical, Radiopharmaceutical=CANARY, RadionuclideCodeSequence=[technetium])
    return radiopharmaceutical


def _name_views_as_ge_does(dataset: Dataset) -> None:
    del dataset.DetectorInformationSequence
    block = dataset.private_block(0x0011, "GEMS_GENIE_1", create=True)
    block.add_new(0x12, "LO", [f"{CANARY} ANT", f"{CANARY} POST"])
    block.add_new(0x30, "LO", [f"{CANARY}_E", f"{CANARY}_F"])
    block.add_new(0x41, "OB", CANARY.encode() * 5)


def _add_overlay(dataset: Dataset) -> None:
    rows, columns = dataset.Rows, dataset.Columns
    overlay = {0x0010: ("US", rows), 0x0011: ("US", columns), 0x0040: ("CS", "G")}
    overlay |= {0x0050: ("SS", [1, 1]), 0x0100: ("US", 1), 0x0102: ("US", 0)}
    overlay |= {0x0022: ("LO", CANARY), 0x3000: ("OW", bytes(rows * columns // 8))}
    for element, (kind, value) in overlay.items():
        dataset.add_new(0x60000000 + element, kind, value)


def _leave_lengths_undefined(dataset: Dataset) -> None:
    for element in dataset:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True


def _encapsulated(name: str, counts: np.ndarray, frames: list[bytes], syntax: UID) -> Seed:
    return _dicom(name, _dataset(counts, PixelData=encapsulate(frames)), syntax)


def _dicom(name: str, dataset: Dataset, syntax: UID) -> Seed:
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset["PixelData"].VR = "OB" if syntax.is_compressed or dataset.BitsAllocated == 8 else "OW"
    dataset["PixelData"].is_undefined_length = syntax.is_encapsulated
    if not syntax.is_little_endian and dataset.BitsAllocated == 16:
        dataset.PixelData = np.frombuffer(dataset.PixelData, np.uint16).byteswap().tobytes()
    file = io.BytesIO()
    dataset.save_as(
        file,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
        enforce_file_format=True,
    )
    return Seed(name, DICOM, file.getvalue())


def _lossless_jpeg(frame: np.ndarray, syntax: UID) -> bytes:
    """One frame as GDCM encodes it; pydicom offers no encoder for these."""
    # GDCM carries a zlib that corrupts the memory where it is loaded before Python's own.
    import gdcm

    rows, columns = frame.shape
    # The writer owns the image, and must live as long.
    writer = gdcm.ImageWriter()
    image = writer.GetImage()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetPhotometricInterpretation(
        gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2)
    )
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ImplicitVRLittleEndian))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, 16, 15, 0))
    pixels = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    pixels.SetByteStringValue(frame.tobytes())
    image.SetDataElement(pixels)
    converter = gdcm.ImageChangeTransferSyntax()
    converter.SetTransferSyntax(
        gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str.__str__(syntax)))
    )
    converter.SetInput(image)
    if not converter.Change():
        raise RuntimeError("GDCM cannot encode lossless JPEG")
    fragments = converter.GetOutput().GetDataElement().GetSequenceOfFragments()
    encoded = fragments.GetFragment(0).GetByteValue().GetBuffer()
    return encoded.encode("utf-8", "surrogateescape")
