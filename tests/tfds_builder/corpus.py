"""Writes a corpus of files as hospitals and anonymisers leave them, and says what each must give.

In: a folder. Out: files in it and a `Case` for each: the views with their counts, or a piece of the
reason for which the file is refused. Every header carries `CANARY`, which no reason may repeat.
"""

import io
import shutil
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.fileset import FileSet
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    BasicTextSRStorage,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedPETImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    NuclearMedicineImageStorage,
    PositronEmissionTomographyImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    XRayAngiographicImageStorage,
    generate_uid,
)

CANARY = "Canarybird"
DATA = Path(__file__).parent / "data"

ANTERIOR, POSTERIOR, UNKNOWN = "anterior", "posterior", "unknown"
BOTH = (ANTERIOR, POSTERIOR)
WHOLE_BODY = ["ORIGINAL", "PRIMARY", "WHOLE BODY", "EMISSION"]
CODED, GE, TEXT, ANGLE, ORDER, MANIFEST = (
    "coded view",
    "GE private text",
    "description text",
    "start angle",
    "detector order",
    "manifest",
)
LOSSY = "compressed with loss: counts are approximate"

Change = Callable[[Dataset], None]
# From one file to another: what a transcoder does.
Encode = Callable[[Path, Path], None]


@dataclass(frozen=True)
class ExpectedView:
    """A view: its frame, what it is, what decides that, and its counts in the file's matrix."""

    frame: int
    name: str
    rule: str
    counts: np.ndarray


@dataclass(frozen=True)
class Case:
    """A file and what must become of it.

    Attributes:
      name: what is special about it.
      path: the file; it may be missing on purpose.
      views: what must be read; empty where the file is refused.
      reason: a piece of the reason that no other form's reason holds.
      notes: pieces of notes that every view must carry.
      worst: the largest difference to the counts; 0 for lossless.
      frame, view, study: what the manifest says of it.
      by_pixels: refused only when a study is checked, not when the file is decoded.
      missing: a program that is not installed, without which there is no file.
    """

    name: str
    path: Path
    views: tuple[ExpectedView, ...] = ()
    reason: str = ""
    notes: tuple[str, ...] = ()
    worst: int = 0
    frame: int | None = None
    view: str | None = None
    study: str = ""
    by_pixels: bool = False
    missing: str = ""


@dataclass(frozen=True)
class Recipe:
    """How the file of a case is made; what `Case` has too means the same.

    Attributes:
      detectors: the coded view of each detector, or None.
      frames: frames in the file.
      expect: (frame, view, rule) of what is to be read; None for the coded views.
      rows, columns, dtype: the matrix and type of the pixels.
      level: multiplies the mean counts of a pixel.
      brightest: the pixels of a small spot; 0 for none.
      draw: draws counts of a shape in another way than a body's.
      store: from counts to stored pixels.
      change: mends the data set before it is written.
      encode: transcodes the file.
      program: what `encode` runs.
      spoil: mends the bytes of the finished file.
      content: bytes to be written instead of any of that.
    """

    name: str
    detectors: tuple[str | None, ...] = BOTH
    frames: int = 0
    expect: tuple[tuple[int, str, str], ...] | None = None
    rows: int = 1024
    columns: int = 256
    dtype: type = np.uint16
    level: float = 1.0
    brightest: int = 0
    draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray] | None = None
    store: Callable[[np.ndarray], np.ndarray] = lambda counts: counts
    change: Change = lambda dataset: None
    encode: Encode | None = None
    program: str = ""
    spoil: Callable[[bytes], bytes] = lambda content: content
    content: Callable[[], bytes | None] | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()
    worst: int = 0
    frame: int | None = None
    view: str | None = None
    study: str = ""
    by_pixels: bool = False


def recipes() -> list[Recipe]:
    """All of the corpus, in a fixed order, no file written."""
    parts = (
        _objects,
        _spellings,
        _wrappings,
        _view_rules,
        _pixels,
        _syntaxes,
        _lossy,
        _htj2k,
        _other_acquisitions,
        _test_sources,
        _other_objects,
        _unusable_pixels,
        _hostile,
        _damaged,
        _no_dicom,
    )
    return [recipe for part in parts for recipe in part()]


def generate(folder: Path) -> list[Case]:
    """Writes the corpus."""
    return [_written(recipe, folder, number) for number, recipe in enumerate(recipes())]


def _written(recipe: Recipe, folder: Path, number: int) -> Case:
    path = folder / f"{number:03}.dcm"
    case = partial(
        Case,
        name=recipe.name,
        path=path,
        reason=recipe.reason,
        notes=recipe.notes,
        worst=recipe.worst,
        frame=recipe.frame,
        view=recipe.view,
        study=recipe.study,
        by_pixels=recipe.by_pixels,
    )
    if recipe.content is not None:
        content = recipe.content()
        if content is not None:
            path.write_bytes(content)
        return case()
    if recipe.program and not shutil.which(recipe.program):
        return case(missing=f"{recipe.program} (Debian: dcmtk)")
    counts = _counts(recipe, number)
    dataset = _nuclear_medicine(recipe.store(counts), recipe.detectors, number)
    recipe.change(dataset)
    _save(dataset, path)
    if recipe.encode:
        plain = folder / "plain.dcm"
        path.rename(plain)
        recipe.encode(plain, path)
        plain.unlink()
    path.write_bytes(recipe.spoil(path.read_bytes()))
    if recipe.reason:
        return case()
    return case(views=tuple(ExpectedView(*one, counts[one[0] - 1]) for one in _expected(recipe)))


def _expected(recipe: Recipe) -> tuple[tuple[int, str, str], ...]:
    if recipe.expect is not None:
        return recipe.expect
    return tuple((n, name, CODED) for n, name in enumerate(recipe.detectors, start=1))


def _save(dataset: Dataset, path: Path) -> None:
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax and not syntax.is_private:
        dataset.save_as(path, enforce_file_format=True)
    else:
        dataset.save_as(path, implicit_vr=False, little_endian=True)


# What is in the pictures.

# (centre, half axis) down and across, as shares of the matrix, and counts a pixel.
_BODY = (
    ((0.10, 0.06), (0.50, 0.17), 5.0),
    ((0.34, 0.17), (0.50, 0.32), 4.0),
    ((0.70, 0.24), (0.38, 0.09), 3.0),
    ((0.70, 0.24), (0.62, 0.09), 3.0),
    ((0.32, 0.16), (0.50, 0.05), 9.0),
    ((0.50, 0.02), (0.50, 0.06), 40.0),
    ((0.30, 0.008), (0.40, 0.03), 30.0),
)
_BACKGROUND = 0.05


@cache
def _mean(rows: int, columns: int) -> np.ndarray:
    """Mean counts a pixel of something that lies like a body, bladder and a hot spot included."""
    down, across = np.ogrid[0.5:rows, 0.5:columns]
    mean = np.full((rows, columns), _BACKGROUND)
    for (y, high), (x, wide), level in _BODY:
        inside = ((down / rows - y) / high) ** 2 + ((across / columns - x) / wide) ** 2 < 1
        mean[inside] += level
    return mean


def _counts(recipe: Recipe, number: int) -> np.ndarray:
    """(frames, rows, columns), another draw for every file and frame."""
    rng = np.random.default_rng(number)
    shape = (recipe.frames or len(recipe.detectors), recipe.rows, recipe.columns)
    if recipe.draw:
        return recipe.draw(rng, shape).astype(recipe.dtype)
    counts = rng.poisson(recipe.level * _mean(*shape[1:]), shape).astype(recipe.dtype)
    if recipe.brightest:
        top, left = shape[1] // 2, shape[2] // 2
        counts[:, top : top + 4, left : left + 4] = recipe.brightest - np.arange(4)
    return counts


def _uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.poisson(8.0, shape)


def _bars(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Four quadrants of lead bars, each of another width, two lying across the other two."""
    down, across = np.indices(shape[1:])
    low, right = down >= shape[1] // 2, across >= shape[2] // 2
    width = np.array([3, 4, 5, 6])[2 * low + right]
    bar = np.where(low ^ right, down, across) // width % 2
    return rng.poisson(12.0 * bar + 1, shape)


# What is in the headers.


def _nuclear_medicine(stored: np.ndarray, views: tuple[str | None, ...], number: int) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = NuclearMedicineImageStorage
    dataset.SOPClassUID = NuclearMedicineImageStorage
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[str(number)])
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study", str(number)])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series", str(number)])
    dataset.Modality = "NM"
    dataset.ImageType = WHOLE_BODY
    dataset.PatientName = f"{CANARY}^Wanda"
    dataset.PatientID = f"{CANARY}-{number}"
    dataset.PatientSex = "F"
    dataset.PatientAge = "057Y"
    dataset.InstitutionName = dataset.AccessionNumber = CANARY
    dataset.SeriesDescription = f"{CANARY} whole body"
    dataset.Manufacturer = "SIEMENS NM"
    frames, dataset.Rows, dataset.Columns = stored.shape
    dataset.NumberOfFrames = frames
    dataset.EnergyWindowVector = [1] * frames
    dataset.DetectorVector = list(range(1, frames + 1))
    dataset.DetectorInformationSequence = [_detector(view) for view in views]
    dataset.PixelSpacing = [2457.6 / dataset.Rows] * 2
    _put_pixels(dataset, stored)
    dataset.CountsAccumulated = int(stored.sum(dtype=np.int64))
    return dataset


def _put_pixels(dataset: Dataset, stored: np.ndarray) -> None:
    bits = stored.dtype.itemsize * 8
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = stored.tobytes() + bytes(stored.nbytes % 2)
    dataset["PixelData"].VR = "OB" if bits == 8 else "OW"


_CODES = {
    ANTERIOR: ("399321004", "SCT", "anterior"),
    POSTERIOR: ("399001007", "SCT", "posterior"),
}


def _detector(view: str | None, **elements: object) -> Dataset:
    return _detector_coded(*_CODES[view], **elements) if view else _with(Dataset(), **elements)


def _detector_coded(value: str, scheme: str, meaning: str, **elements: object) -> Dataset:
    code = _with(Dataset(), CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)
    return _with(Dataset(), CollimatorType="PARA", ViewCodeSequence=[code], **elements)


def _with(dataset: Dataset, **elements: object) -> Dataset:
    """Sets elements, or removes those that are None."""
    for keyword, value in elements.items():
        assert tag_for_keyword(keyword), keyword
        if value is not None:
            setattr(dataset, keyword, value)
        elif keyword in dataset:
            delattr(dataset, keyword)
    return dataset


def _setting(**elements: object) -> Change:
    return lambda dataset: _with(dataset, **elements) and None


def _all(*changes: Change) -> Change:
    def change(dataset: Dataset) -> None:
        for one in changes:
            one(dataset)

    return change


def _meta(**elements: object) -> Change:
    return lambda dataset: _with(dataset.file_meta, **elements) and None


def _of_class(uid: str, modality: str | None = "NM", **elements: object) -> Change:
    return _all(
        _setting(SOPClassUID=uid, Modality=modality, **elements),
        _meta(MediaStorageSOPClassUID=uid),
    )


def _windows(*limits: tuple[float, float]) -> Change:
    items = [
        _with(
            Dataset(),
            EnergyWindowRangeSequence=[
                _with(Dataset(), EnergyWindowLowerLimit=low, EnergyWindowUpperLimit=high)
            ],
        )
        for low, high in limits
    ]
    return _setting(EnergyWindowInformationSequence=items, NumberOfEnergyWindows=len(items))


def _genie(element: int, *values: str) -> Change:
    def change(dataset: Dataset) -> None:
        block = dataset.private_block(0x0011, "GEMS_GENIE_1", create=True)
        block.add_new(element, "LO", list(values) if len(values) > 1 else values[0])

    return change


def _angles(*degrees: float | None) -> Change:
    return _setting(
        DetectorInformationSequence=[_detector(None, StartAngle=one) for one in degrees]
    )


# What hospitals have.


def _objects() -> Iterator[Recipe]:
    lone = ((1, ANTERIOR, CODED),)
    yield Recipe("two views in one object")
    yield Recipe("one view in an object of its own", (ANTERIOR,), study="pair")
    yield Recipe("the other view in another object", (POSTERIOR,), study="pair")
    yield Recipe("posterior view first", (POSTERIOR, ANTERIOR))
    yield Recipe(
        "DetectorVector turned round",
        change=_setting(DetectorVector=[2, 1]),
        expect=((1, POSTERIOR, CODED), (2, ANTERIOR, CODED)),
    )
    four = {"frames": 4, "rows": 512, "columns": 128}
    by_window = _setting(EnergyWindowVector=[1, 1, 2, 2], DetectorVector=[1, 2, 1, 2])
    by_detector = _setting(EnergyWindowVector=[1, 2, 1, 2], DetectorVector=[1, 1, 2, 2])
    photopeak, scatter, wide = (126.45, 154.55), (92.0, 125.0), (100.0, 170.0)
    yield Recipe(
        "two energy windows, photopeak second",
        change=_all(by_window, _windows(scatter, photopeak)),
        expect=((3, ANTERIOR, CODED), (4, POSTERIOR, CODED)),
        **four,
    )
    yield Recipe(
        "two energy windows, detectors outermost",
        change=_all(by_detector, _windows(photopeak, scatter)),
        expect=((1, ANTERIOR, CODED), (3, POSTERIOR, CODED)),
        **four,
    )
    yield Recipe(
        "two energy windows that both hold the photopeak",
        change=_all(by_window, _windows(wide, photopeak)),
        expect=((3, ANTERIOR, CODED), (4, POSTERIOR, CODED)),
        **four,
    )
    yield Recipe(
        "three energy windows",
        frames=6,
        rows=512,
        columns=128,
        change=_all(
            _setting(EnergyWindowVector=[1, 1, 2, 2, 3, 3], DetectorVector=[1, 2] * 3),
            _windows(scatter, photopeak, (160.0, 200.0)),
        ),
        expect=((3, ANTERIOR, CODED), (4, POSTERIOR, CODED)),
    )
    yield Recipe(
        "two energy windows of one detector",
        (ANTERIOR,),
        frames=2,
        change=_all(
            _setting(EnergyWindowVector=[1, 2], DetectorVector=[1, 1]),
            _windows(scatter, photopeak),
        ),
        expect=((2, ANTERIOR, CODED),),
    )
    yield Recipe(
        "energy windows of unknown limits",
        change=by_window,
        reason="none of them known to hold 140.5 keV",
        **four,
    )
    yield Recipe(
        "energy windows of unknown limits, frame named",
        change=by_window,
        frame=4,
        expect=((4, POSTERIOR, CODED),),
        **four,
    )
    without_vectors = _setting(EnergyWindowVector=None, DetectorVector=None)
    yield Recipe("no frame vectors", change=without_vectors)
    yield Recipe(
        "no frame vectors, no detectors",
        change=_all(without_vectors, _setting(DetectorInformationSequence=None)),
        expect=((1, ANTERIOR, "detector order"), (2, POSTERIOR, "detector order")),
        notes=("view assumed from detector order",),
    )
    yield Recipe("NumberOfFrames absent", (ANTERIOR,), change=_setting(NumberOfFrames=None))
    yield from _uncounted_frames()
    yield Recipe("Secondary Capture of nuclear medicine", change=_of_class(SECONDARY))
    yield Recipe(
        "Secondary Capture that does not say how many counts it holds",
        change=_of_class(SECONDARY, CountsAccumulated=None),
        notes=("grey values of a picture, not counts",),
    )
    yield Recipe(
        "numbers with decimal commas",
        change=lambda dataset: dataset.add_new("PixelSpacing", "LO", ["2,4", "2,4"]),
        notes=("pixel spacing unknown",),
    )
    yield Recipe("negative CountsAccumulated", change=_setting(CountsAccumulated=-1))
    yield Recipe("multi-frame word Secondary Capture", change=_of_class(f"{SECONDARY}.3"))
    yield Recipe("retired nuclear medicine class", change=_of_class("1.2.840.10008.5.1.4.1.1.5"))
    yield Recipe(
        "SOPClassUID and ImageType absent", change=_setting(SOPClassUID=None, ImageType=None)
    )
    yield Recipe("ImageType absent", change=_setting(ImageType=None))
    yield Recipe("ImageType STATIC", change=_setting(ImageType=["ORIGINAL", "PRIMARY", "STATIC"]))
    yield Recipe("ImageType of two values", change=_setting(ImageType=["DERIVED", "SECONDARY"]))
    yield Recipe("PixelSpacing empty", (ANTERIOR,), expect=lone, change=_setting(PixelSpacing=""))
    yield Recipe(
        "PixelSpacing absent",
        change=_setting(PixelSpacing=None),
        notes=("pixel spacing unknown",),
    )
    yield Recipe("letters in UIDs", change=_setting(StudyInstanceUID=f"1.2.{CANARY}_3-4"))
    yield Recipe("UIDs absent", change=_setting(StudyInstanceUID=None, SeriesInstanceUID=None))


def _uncounted_frames() -> Iterator[Recipe]:
    uncounted = _setting(NumberOfFrames=None)
    counted = ("NumberOfFrames is missing: frames counted in the pixels",)
    yield Recipe("NumberOfFrames absent, two frames", change=uncounted, notes=counted)
    yield Recipe("NumberOfFrames 0, two frames", change=_setting(NumberOfFrames=0), notes=counted)
    for syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        yield Recipe(
            f"NumberOfFrames absent, two frames in {syntax.name}",
            encode=_mending(_compressed(syntax), uncounted),
            notes=counted,
        )
    yield Recipe(
        "NumberOfFrames of one of two frames, the frame named",
        (None, None),
        change=_setting(NumberOfFrames=1),
        frame=2,
        view=POSTERIOR,
        expect=((2, POSTERIOR, MANIFEST),),
        notes=("NumberOfFrames disagrees with the pixels",),
    )


def _spellings() -> Iterator[Recipe]:
    for third in ("WHOLEBODY", "Whole Body", "WHOLE_BODY", "static"):
        yield Recipe(
            f"ImageType spelt {third}",
            change=_setting(ImageType=["ORIGINAL", "PRIMARY", third, "EMISSION"]),
        )
    yield Recipe("Modality nm", change=_of_class(SECONDARY, "nm"))
    yield Recipe("monochrome2", change=_setting(PhotometricInterpretation="Monochrome 2"))
    long_uid = "1.2.826.0.1.3680043.10.363." + "7" * 50
    yield Recipe(
        "a UID of 77 characters",
        change=_setting(StudyInstanceUID=long_uid),
        notes=("a UID that is ill-formed or has more than 64 characters",),
    )
    for text in ("Bone scan with Co-57 marker", "WB QC ok", "COR checked", "4-quadrant bar"):
        yield Recipe(
            f"a patient described by '{text}'",
            change=_setting(StudyDescription=text),
            notes=("described in words that tests of the camera have",),
        )


SECONDARY = str(SecondaryCaptureImageStorage)


def _wrappings() -> Iterator[Recipe]:
    """Data sets that lack the preamble or the file header, or carry a foreign preamble."""
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian):
        yield Recipe(f"bare data set, {syntax.name}", encode=partial(_resaved, syntax), spoil=_bare)
    yield Recipe("file header but no preamble", spoil=lambda content: content[132:])
    yield Recipe(
        "a TIFF's first bytes in the preamble",
        spoil=lambda content: b"II*\0\x08\0\0\0".ljust(128, b"\0") + content[128:],
    )
    yield Recipe("no TransferSyntaxUID", encode=_without_syntax)


def _resaved(syntax: pydicom.uid.UID, source: Path, target: Path) -> None:
    dataset = pydicom.dcmread(source)
    if not syntax.is_little_endian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(
        target,
        dataset,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
        force_encoding=True,
    )


def _bare(content: bytes) -> bytes:
    """Without preamble and file header: its group length says where that ends."""
    return content[144 + int.from_bytes(content[140:144], "little") :]


def _without_syntax(source: Path, target: Path) -> None:
    dataset = pydicom.dcmread(source)
    del dataset.file_meta.TransferSyntaxUID
    dataset.save_as(target, implicit_vr=False, little_endian=True)


def _view_rules() -> Iterator[Recipe]:
    yield from _coded_views()
    yield from _ge_views()
    yield from _described_views()
    yield from _turned_views()
    yield from _manifest_views()
    yield from _conflicts()
    yield from _vectors()


def _coded_views() -> Iterator[Recipe]:
    schemes = (
        ("SNOMED RT", "G-5215", "G-5216", "SRT"),
        ("retired", "G-5200", "G-5201", "SNM3"),
        ("private", "AN", "PO", "99LOCAL"),
    )
    for name, front, back, scheme in schemes:
        items = [_detector_coded(value, scheme, CANARY) for value in (front, back)]
        yield Recipe(
            f"{name} view codes", change=_setting(DetectorInformationSequence=items), rows=512
        )
    items = [_detector_coded("X", "99LOCAL", f"{CANARY} {view} view") for view in BOTH]
    yield Recipe(
        "unknown view codes with a telling meaning",
        change=_setting(DetectorInformationSequence=items),
    )
    yield Recipe(
        "one view of two is coded",
        (None, ANTERIOR),
        expect=((1, POSTERIOR, "opposite detector"), (2, ANTERIOR, CODED)),
    )
    yield Recipe(
        "both views coded anterior",
        (ANTERIOR, ANTERIOR),
        reason="coded view contradicts itself",
    )
    yield Recipe(
        "both views coded anterior, told apart by the manifest",
        (ANTERIOR, ANTERIOR),
        frame=2,
        view=POSTERIOR,
        expect=((2, POSTERIOR, MANIFEST),),
        notes=("coded view says both, manifest posterior",),
    )


def _ge_views() -> Iterator[Recipe]:
    lone = {"detectors": (None,), "frames": 1}
    for element, text, view in (
        (0x12, "ANT", ANTERIOR),
        (0x12, "Whole Body POST", POSTERIOR),
        (0x30, "WB_E", ANTERIOR),
        (0x30, f"{CANARY}_F", POSTERIOR),
    ):
        yield Recipe(
            f"GE (0011,xx{element:02X}) {text.replace(CANARY, '')}",
            change=_genie(element, text),
            expect=((1, view, GE),),
            **lone,
        )
    yield Recipe(
        "GE names of two frames",
        (None, None),
        change=_genie(0x30, "POS", "ANT"),
        expect=((1, POSTERIOR, GE), (2, ANTERIOR, GE)),
    )
    yield Recipe(
        "GE names that contradict each other",
        change=_all(_genie(0x12, "ANT"), _genie(0x30, "WB_F")),
        reason="GE private text contradicts itself",
        **lone,
    )


def _described_views() -> Iterator[Recipe]:
    lone = {"detectors": (None,)}
    for field, text, view in (
        ("SeriesDescription", f"{CANARY} WB POST", POSTERIOR),
        ("AcquisitionProtocolDescription", "BONE_ANT", ANTERIOR),
        ("ImageID", "Posterior", POSTERIOR),
        ("ViewPosition", "ANT", ANTERIOR),
    ):
        yield Recipe(
            f"view in {field}",
            change=_setting(**{field: text}),
            expect=((1, view, TEXT),),
            **lone,
        )
    yield Recipe(
        "ViewPosition of each detector",
        (None, None),
        change=_setting(
            DetectorInformationSequence=[
                _detector(None, ViewPosition=text) for text in ("POST", "ANT")
            ]
        ),
        expect=((1, POSTERIOR, TEXT), (2, ANTERIOR, TEXT)),
    )
    for text in ("ANT/POST", "posture"):
        yield Recipe(
            f"description {text} decides nothing",
            change=_setting(SeriesDescription=text),
            expect=((1, UNKNOWN, "none"),),
            notes=("view unknown",),
            **lone,
        )


def _turned_views() -> Iterator[Recipe]:
    for degrees, views in (
        ((180, 0), BOTH),
        ((180, 360), BOTH),
        ((0, 180), BOTH[::-1]),
        ((-178.5, 361.5), BOTH),
    ):
        yield Recipe(
            f"detectors at {degrees[0]} and {degrees[1]} degrees",
            (None, None),
            change=_angles(*degrees),
            expect=tuple((n, view, ANGLE) for n, view in enumerate(views, start=1)),
        )
    yield Recipe(
        "detectors both at 0 degrees",
        (None, None),
        change=_angles(0, 0),
        expect=((1, ANTERIOR, "detector order"), (2, POSTERIOR, "detector order")),
        notes=("view assumed from detector order",),
    )
    yield Recipe(
        "a lone detector at 0 degrees decides nothing",
        (None,),
        change=_angles(0),
        expect=((1, UNKNOWN, "none"),),
    )
    for degrees, view in ((180, ANTERIOR), (360, POSTERIOR)):
        yield Recipe(
            f"a lone detector at {degrees} degrees",
            (None,),
            change=_angles(degrees),
            expect=((1, view, ANGLE),),
        )
    yield Recipe(
        "detectors at the sides",
        (None, None),
        change=_angles(90, 270),
        expect=((1, ANTERIOR, ORDER), (2, POSTERIOR, ORDER)),
        notes=("start angles that name neither", "view assumed from detector order"),
    )


def _manifest_views() -> Iterator[Recipe]:
    yield Recipe(
        "view from the manifest", (None,), view=POSTERIOR, expect=((1, POSTERIOR, MANIFEST),)
    )
    yield Recipe(
        "frame and view from the manifest",
        (None, None),
        frame=2,
        view=ANTERIOR,
        expect=((2, ANTERIOR, MANIFEST),),
    )
    yield Recipe(
        "manifest agrees with the code",
        (ANTERIOR,),
        view=ANTERIOR,
        expect=((1, ANTERIOR, MANIFEST),),
    )
    yield Recipe("manifest view for two frames", view=ANTERIOR, reason="add a row with 'frame'")
    yield Recipe("manifest frame beyond the last", frame=3, reason="frame 3 is asked for")


def _conflicts() -> Iterator[Recipe]:
    """The higher rank decides, and the lower one is named."""
    yield Recipe(
        "manifest against the code",
        (ANTERIOR,),
        view=POSTERIOR,
        expect=((1, POSTERIOR, MANIFEST),),
        notes=("coded view says anterior, manifest posterior",),
    )
    yield Recipe(
        "GE text against the code",
        (ANTERIOR,),
        change=_genie(0x12, "POST"),
        notes=("GE private text says posterior, coded view anterior",),
    )
    yield Recipe(
        "description against the code",
        (ANTERIOR,),
        change=_setting(SeriesDescription="BONE POST"),
        notes=("description text says posterior, coded view anterior",),
    )
    yield Recipe(
        "angles against the codes",
        change=_setting(
            DetectorInformationSequence=[
                _detector(view, StartAngle=angle)
                for view, angle in zip(BOTH, (0, 180), strict=True)
            ]
        ),
        notes=("start angle says",),
    )
    yield Recipe(
        "angles against GE text",
        (None, None),
        change=_all(_angles(0, 180), _genie(0x12, "ANT", "POST")),
        expect=((1, ANTERIOR, GE), (2, POSTERIOR, GE)),
        notes=("start angle says",),
    )


def _vectors() -> Iterator[Recipe]:
    """Frame vectors that cannot be meant: never a guess, and never in the way of what is known."""
    for name, vectors, said in (
        ("DetectorVector too long", {"DetectorVector": [1, 2, 1]}, "has 3 entries for 2 frames"),
        ("DetectorVector out of range", {"DetectorVector": [2, 3]}, "entries out of range"),
        ("DetectorVector from 0", {"DetectorVector": [0, 1]}, "entries out of range"),
        ("one detector for all frames", {"DetectorVector": [1, 1]}, "one detector for all"),
        ("EnergyWindowVector too long", {"EnergyWindowVector": [1] * 4}, "has 4 entries"),
    ):
        (keyword,) = vectors
        change = _setting(NumberOfDetectors=2, **vectors)
        yield Recipe(f"{name}, views coded", change=change, notes=(f"{keyword} ", said))
        yield Recipe(
            f"{name}, GE names",
            (None, None),
            change=_all(change, _genie(0x12, "POST", "ANT")),
            expect=((1, POSTERIOR, GE), (2, ANTERIOR, GE)),
            notes=(said,),
        )
        yield Recipe(
            f"{name}, frame and view from the manifest",
            (None, None),
            change=change,
            frame=1,
            view=POSTERIOR,
            expect=((1, POSTERIOR, MANIFEST),),
            notes=(said,),
        )
        for what, more in (("nothing else", _setting()), ("angles alone", _angles(180, 0))):
            yield Recipe(
                f"{name}, {what}",
                (None, None),
                change=_all(more, change),
                reason=f"{keyword} {said}" if said.startswith("has") else said,
            )
    yield Recipe(
        "DetectorVector from 0, turned round",
        change=_setting(DetectorVector=[1, 0]),
        expect=((1, POSTERIOR, CODED), (2, ANTERIOR, CODED)),
        notes=("DetectorVector has entries out of range",),
    )
    yield Recipe(
        "a frame taken out, vectors, codes and GE names of both left",
        BOTH,
        frames=1,
        change=_all(_setting(DetectorVector=[1, 2]), _genie(0x12, "ANT", "POST")),
        expect=((1, UNKNOWN, "none"),),
        notes=("DetectorVector has 2 entries for 1 frames",),
    )


def _pixels() -> Iterator[Recipe]:
    yield from _pixel_types()
    yield from _inverted()
    yield from _rescaled()
    for rows, columns in ((512, 128), (2048, 512), (3072, 768), (256, 64), (1001, 333), (700, 300)):
        yield Recipe(f"matrix {rows}x{columns}", (POSTERIOR,), rows=rows, columns=columns)
    yield Recipe(
        "summed pixels exceed 16 bits",
        (ANTERIOR,),
        rows=2048,
        columns=512,
        brightest=65_535,
        reason="counts, more than 65535",
        by_pixels=True,
    )


def _pixel_types() -> Iterator[Recipe]:
    yield Recipe("8 bit", dtype=np.uint8)
    yield Recipe("8 bit, odd length", (ANTERIOR,), dtype=np.uint8, rows=1001, columns=333)
    yield Recipe("8 bit, signed", dtype=np.int8)
    yield Recipe("16 bit, signed", dtype=np.int16, brightest=32_767)
    yield Recipe("16 bit to the brim", brightest=65_535)
    yield Recipe("12 of 16 bits", brightest=4095, change=_setting(BitsStored=12, HighBit=11))
    yield Recipe(
        "12 of 16 bits, an overlay above them",
        brightest=4095,
        change=_all(
            _setting(BitsStored=12, HighBit=11, CountsAccumulated=None), _overlay_in_high_bits
        ),
    )
    yield Recipe("BitsStored of 8 in 16", change=_setting(BitsStored=8, HighBit=7))
    yield Recipe(
        "BitsStored of 8, and more counts than that, as CountsAccumulated says",
        brightest=700,
        change=_setting(BitsStored=8, HighBit=7),
    )
    yield Recipe(
        "12 of 16 bits, in the higher ones",
        brightest=4095,
        store=lambda counts: counts << 4,
        change=_setting(BitsStored=12, HighBit=15, CountsAccumulated=None),
    )
    for keyword in (
        "SamplesPerPixel",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
    ):
        yield Recipe(
            f"no {keyword}",
            change=_setting(**{keyword: None}),
            notes=(f"{keyword} missing: usual values assumed",),
        )
    yield from _masked()
    for dtype in (np.uint8, np.uint16):
        yield Recipe(
            f"{np.dtype(dtype).itemsize * 8} bit, a palette to show counts with",
            dtype=dtype,
            change=_setting(PhotometricInterpretation="PALETTE COLOR"),
            notes=("colour table left out",),
        )


def _masked() -> Iterator[Recipe]:
    """A drawing above the 12 bits stored, in other syntaxes, and beside signed pixels."""
    uncounted = _setting(BitsStored=12, HighBit=11, CountsAccumulated=None)
    masked = ("bits above BitsStored were set",)
    for syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        yield Recipe(
            f"12 of 16 bits, an overlay above them, {syntax.name}",
            brightest=4095,
            change=_overlay_in_high_bits,
            encode=_mending(_compressed(syntax), uncounted),
            notes=masked,
        )
    yield Recipe(
        "12 of 16 bits, signed, an overlay above them",
        brightest=2047,
        dtype=np.int16,
        change=_all(_overlay_in_high_bits, uncounted),
        notes=masked,
    )
    yield Recipe(
        "an overlay above bits that HighBit does not end",
        change=_all(_overlay_in_high_bits, uncounted, _setting(HighBit=15)),
        reason="has 12 BitsStored but HighBit 15",
    )


def _mending(encode: Encode, change: Change) -> Encode:
    """Changes the header of the file that another step has written."""

    def mended(source: Path, target: Path) -> None:
        encode(source, target)
        dataset = pydicom.dcmread(target)
        change(dataset)
        dataset.save_as(target)

    return mended


def _overlay_in_high_bits(dataset: Dataset) -> None:
    """As old cameras did: a graphic in the bits above those of the pixels."""
    pixels = np.frombuffer(dataset.PixelData, "<u2").copy()
    pixels[:5000] |= 0x1000
    dataset.PixelData = pixels.tobytes()


def _inverted() -> Iterator[Recipe]:
    inverted = _setting(PhotometricInterpretation="MONOCHROME1", CountsAccumulated=None)
    note = ("MONOCHROME1 inverted",)
    yield Recipe("MONOCHROME1", change=inverted, store=lambda c: np.uint16(65_535) - c, notes=note)
    yield Recipe(
        "MONOCHROME1, 8 bit",
        dtype=np.uint8,
        change=inverted,
        store=lambda c: np.uint8(255) - c,
        notes=note,
    )
    yield Recipe(
        "MONOCHROME1, 12 of 16 bits",
        change=_all(inverted, _setting(BitsStored=12, HighBit=11)),
        store=lambda c: np.uint16(4095) - c,
        notes=note,
    )
    yield Recipe(
        "MONOCHROME1 in JPEG-LS",
        change=inverted,
        store=lambda c: np.uint16(65_535) - c,
        encode=_compressed(JPEGLSLossless),
        notes=note,
    )
    yield Recipe(
        "MONOCHROME1 that only displays counts dark on white",
        change=_setting(PhotometricInterpretation="MONOCHROME1"),
        notes=("MONOCHROME1 not inverted",),
    )
    raw = ("MONOCHROME1 not inverted: its empty part is stored low",)
    yield Recipe("MONOCHROME1 of raw counts, no sum", change=inverted, notes=raw)
    yield Recipe("MONOCHROME1 of raw counts, 8 bit", dtype=np.uint8, change=inverted, notes=raw)
    yield Recipe("MONOCHROME1 of raw counts, signed", dtype=np.int16, change=inverted, notes=raw)
    yield Recipe(
        "MONOCHROME1 of raw counts in RLE",
        change=inverted,
        encode=_compressed(RLELossless),
        notes=raw,
    )
    yield Recipe(
        "MONOCHROME1 with signed pixels",
        dtype=np.int16,
        store=lambda c: np.int16(32_767) - c,
        change=inverted,
        reason="MONOCHROME1 with signed pixels",
    )
    yield Recipe(
        "MONOCHROME1 inverted about no power of two",
        store=lambda c: (np.uint16(3000) - c).astype(np.uint16),
        change=inverted,
        reason="do not tell whether they are inverted",
    )


def _rescaled() -> Iterator[Recipe]:
    uncounted = {"CountsAccumulated": None}
    yield Recipe(
        "rescaled by 2 and 100",
        store=lambda c: (2 * c + 100).astype(np.uint16),
        change=_setting(RescaleSlope="0.5", RescaleIntercept=-50, **uncounted),
        notes=("rescaled",),
    )
    yield Recipe(
        "rescaled signed pixels",
        dtype=np.int16,
        store=lambda c: (c.astype(np.int32) - 1000).astype(np.int16),
        change=_setting(RescaleSlope=1, RescaleIntercept=1000, **uncounted),
        notes=("rescaled",),
    )
    yield Recipe(
        "rescaled to fractions",
        change=_setting(RescaleSlope="0.3", RescaleIntercept=0, **uncounted),
        store=lambda c: np.rint(c / 0.3).astype(np.uint16),
        notes=("rescaled and rounded",),
    )
    yield Recipe(
        "rescaled below zero",
        change=_setting(RescaleSlope=1, RescaleIntercept=-20),
        reason="negative pixels (lowest -20)",
    )
    yield Recipe(
        "rescaled beyond all bounds",
        change=_setting(RescaleSlope="1e300", RescaleIntercept=0),
        reason="unusable RescaleSlope",
    )


# Transcoders.


def _run(*command: str) -> Encode:
    """A program of dcmtk."""

    def encode(source: Path, target: Path) -> None:
        subprocess.run([*command, source, target], check=True, capture_output=True)

    return encode


def _compressed(syntax: str, **options: object) -> Encode:
    """pydicom's encoders."""

    def encode(source: Path, target: Path) -> None:
        dataset = pydicom.dcmread(source)
        dataset.compress(syntax, generate_instance_uid=False, **options)
        dataset.save_as(target)

    return encode


def _gdcm(syntax: str, name: str) -> Encode:
    """GDCM's encoders.

    GDCM aborts on NM detectors without a position and writes no signed Secondary Capture: it gets
    the pixels as an angiogram.
    """

    def encode(source: Path, target: Path) -> None:
        import gdcm

        dataset = pydicom.dcmread(source)
        pixels = pydicom.dcmread(source)
        _of_class(XRayAngiographicImageStorage, DetectorInformationSequence=None)(pixels)
        pixels.save_as(target)
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), None
        reader.SetFileName(str(target))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(target))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        encoded = pydicom.dcmread(target).PixelData
        frames = list(generate_frames(encoded, number_of_frames=dataset.NumberOfFrames))
        _put_codestreams(dataset, syntax, frames)
        dataset.save_as(target)

    return encode


def _put_codestreams(dataset: Dataset, syntax: str, frames: list[bytes], **options: object) -> None:
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    dataset.PixelData = encapsulate(frames, **options)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True


_LOSSLESS: tuple[tuple[str, str, Encode], ...] = (
    ("implicit little endian", "dcmconv", _run("dcmconv", "+ti")),
    ("explicit big endian", "dcmconv", _run("dcmconv", "+tb")),
    ("deflated", "dcmconv", _run("dcmconv", "+td")),
    ("undefined lengths", "dcmconv", _run("dcmconv", "+te", "-e")),
    ("RLE", "dcmcrle", _run("dcmcrle")),
    ("JPEG Lossless .70", "dcmcjpeg", _run("dcmcjpeg", "+e1")),
    ("JPEG Lossless .57", "dcmcjpeg", _run("dcmcjpeg", "+el")),
    ("JPEG Lossless .57, first predictor", "dcmcjpeg", _run("dcmcjpeg", "+el", "+sv", "1")),
    ("JPEG-LS .80", "dcmcjpls", _run("dcmcjpls")),
    ("big endian", "", partial(_resaved, ExplicitVRBigEndian)),
    ("deflated", "", partial(_resaved, DeflatedExplicitVRLittleEndian)),
    ("RLE", "", _compressed(RLELossless)),
    ("JPEG-LS .80", "", _compressed(JPEGLSLossless)),
    ("JPEG 2000 .90", "", _compressed(JPEG2000Lossless)),
    ("JPEG Lossless .57", "gdcm", _gdcm(JPEGLossless, "JPEGLosslessProcess14")),
    ("JPEG Lossless .70", "gdcm", _gdcm(JPEGLosslessSV1, "JPEGLosslessProcess14_1")),
)

# Pixels that encoders have trouble with: name, type, brightest.
_PIXEL_TYPES = (
    ("8 bit", np.uint8, 255),
    ("16 bit", np.uint16, 0),
    ("16 bit to the brim", np.uint16, 65_535),
    ("signed", np.int16, 32_767),
)


def _syntaxes() -> Iterator[Recipe]:
    small = {"rows": 512, "columns": 128}
    for syntax, program, encode in _LOSSLESS:
        by = "pydicom" if not program else "GDCM" if program == "gdcm" else "dcmtk"
        for pixels, dtype, brightest in _PIXEL_TYPES:
            if syntax == "big endian" and dtype == np.uint8:
                continue
            yield Recipe(
                f"{syntax} by {by}, {pixels}",
                dtype=dtype,
                brightest=brightest,
                encode=encode,
                program="" if program == "gdcm" else program,
                **small,
            )
    for name, options in (
        ("each frame in three fragments", {"fragments_per_frame": 3}),
        ("three fragments, no offset table", {"fragments_per_frame": 3, "has_bot": False}),
        ("no offset table", {"has_bot": False}),
    ):
        yield Recipe(
            f"JPEG 2000, {name}", encode=partial(_fragmented, JPEG2000Lossless, options), **small
        )
    yield Recipe("JPEG-LS, extended offset table", encode=_with_extended_offsets, **small)
    yield Recipe(
        "JPEG 2000 of an odd matrix",
        (ANTERIOR,),
        rows=1001,
        columns=333,
        encode=_compressed(JPEG2000Lossless),
    )


def _fragmented(syntax: str, options: dict[str, object], source: Path, target: Path) -> None:
    dataset = pydicom.dcmread(source)
    dataset.compress(syntax, generate_instance_uid=False)
    frames = list(generate_frames(dataset.PixelData, number_of_frames=dataset.NumberOfFrames))
    _put_codestreams(dataset, syntax, frames, **options)
    dataset.save_as(target)


def _with_extended_offsets(source: Path, target: Path) -> None:
    dataset = pydicom.dcmread(source)
    dataset.compress(JPEGLSLossless, encapsulate_ext=True, generate_instance_uid=False)
    dataset.save_as(target)


def _lossy() -> Iterator[Recipe]:
    small = {"rows": 512, "columns": 128, "notes": (LOSSY,)}
    eight = small | {"dtype": np.uint8, "worst": 40}
    baseline, extended = _run("dcmcjpeg", "+eb"), _run("dcmcjpeg", "+ee")
    yield Recipe("JPEG baseline .50", encode=baseline, program="dcmcjpeg", **eight)
    yield Recipe(
        "JPEG baseline .50 of 16 bits",
        encode=baseline,
        program="dcmcjpeg",
        brightest=4000,
        **small | {"worst": 4000, "notes": (LOSSY, "do not add up")},
    )
    yield Recipe("JPEG extended .51, 8 bit", encode=extended, program="dcmcjpeg", **eight)
    yield Recipe(
        "JPEG extended .51, 12 bit",
        encode=extended,
        program="dcmcjpeg",
        reason="pip install pylibjpeg-libjpeg",
    )
    yield Recipe(
        "JPEG-LS .81 by dcmtk",
        encode=_run("dcmcjpls", "+en", "+md", "3"),
        program="dcmcjpls",
        worst=3,
        **small,
    )
    near = _compressed(JPEGLSNearLossless, jls_error=2)
    yield Recipe("JPEG-LS .81 by pydicom", encode=near, worst=2, **small)
    yield Recipe("JPEG 2000 .91", encode=_compressed(JPEG2000, j2k_psnr=[90]), worst=60, **small)
    yield Recipe("JPEG 2000 .91, reversible", encode=_relabelled, **small)
    yield Recipe("compressed with loss once", change=_setting(LossyImageCompression="01"), **small)


def _relabelled(source: Path, target: Path) -> None:
    dataset = pydicom.dcmread(source)
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = JPEG2000
    dataset.save_as(target)


_HTJ2K_SHAPE = (512, 128)
# Centre and half axes, down and across, in pixels, and sixteenths of 16 counts.
_HTJ2K_BODY = (
    ((50, 64), (32, 20), 5),
    ((174, 64), (88, 42), 4),
    ((358, 48), (122, 12), 3),
    ((358, 80), (122, 12), 3),
    ((164, 64), (80, 6), 3),
)
_HTJ2K_SPOT = ((256, 64), (8, 8))


def htj2k_counts() -> np.ndarray:
    """The image in data/htj2k_*.j2c, in whole numbers only: every machine draws the same.

    A pixel is a binomial draw from 16, in one spot 16 bits at random.
    """
    level = np.zeros(_HTJ2K_SHAPE, np.int64)
    for centre, axes, more in _HTJ2K_BODY:
        level += more * _ellipse(centre, axes)
    counts = sum(((_hashed(draw) & 15) < level).astype(np.uint16) for draw in range(16))
    return np.where(_ellipse(*_HTJ2K_SPOT), (_hashed(16) & 0xFFFF).astype(np.uint16), counts)


def _ellipse(centre: tuple[int, int], axes: tuple[int, int]) -> np.ndarray:
    down, across = np.indices(_HTJ2K_SHAPE)
    (y, x), (high, wide) = centre, axes
    return ((down - y) * wide) ** 2 + ((across - x) * high) ** 2 < (high * wide) ** 2


def _hashed(draw: int) -> np.ndarray:
    """Random bits of every pixel: a multiply-and-xorshift hash of its number."""
    rows, columns = _HTJ2K_SHAPE
    bits = np.arange(rows * columns, dtype=np.uint32).reshape(rows, columns)
    bits = bits * np.uint32(17) + np.uint32(draw)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        bits = (bits ^ (bits >> np.uint32(shift))) * np.uint32(factor)
    return bits


def _htj2k() -> Iterator[Recipe]:
    rows, columns = _HTJ2K_SHAPE
    shape = {"detectors": (ANTERIOR,), "rows": rows, "columns": columns}
    for name, syntax, file in (
        ("HTJ2K .201", HTJ2KLossless, "htj2k_lrcp.j2c"),
        ("HTJ2K .202", HTJ2KLosslessRPCL, "htj2k_rpcl.j2c"),
    ):
        yield Recipe(
            name,
            draw=lambda rng, shape: htj2k_counts()[None],
            encode=partial(_with_codestream, syntax, (DATA / file).read_bytes),
            **shape,
        )
    yield Recipe(
        "HTJ2K .203",
        draw=lambda rng, shape: htj2k_counts()[None],
        encode=partial(_with_codestream, HTJ2K, (DATA / "htj2k_lossy.j2c").read_bytes),
        notes=(LOSSY,),
        worst=16,
        **shape,
    )


def _with_codestream(
    syntax: str, codestream: Callable[[], bytes], source: Path, target: Path
) -> None:
    dataset = pydicom.dcmread(source)
    _put_codestreams(dataset, syntax, [codestream()])
    dataset.save_as(target)


# What is not a whole-body view.


def _other_acquisitions() -> Iterator[Recipe]:
    for kind in ("TOMO", "RECON TOMO"):
        for frames, side in ((13, 64), (50, 128)):
            yield Recipe(
                f"SPECT, {kind}, {frames} frames of {side}x{side}",
                change=_setting(ImageType=["ORIGINAL", "PRIMARY", kind, "EMISSION"]),
                reason=f"is a {kind} acquisition",
                **_stack(frames, side, side),
            )
    no_type = _setting(ImageType=None)
    for frames, side in ((13, 64), (50, 128)):
        yield Recipe(
            f"SPECT without ImageType, {frames} frames of {side}x{side}",
            change=no_type,
            reason=f"has {frames} frames of {side}x{side}: a tomogram",
            **_stack(frames, side, side),
        )
    yield Recipe(
        "SPECT without ImageType, of a long matrix, a frame named",
        change=no_type,
        frame=1,
        view=ANTERIOR,
        reason="has 13 frames of 128x64: a tomogram",
        **_stack(13, 128, 64),
    )
    yield Recipe(
        "a few frames of which nothing is known",
        change=_setting(ImageType=None, EnergyWindowVector=None),
        reason="has 5 frames, not one or two views",
        **_stack(5, 512, 128),
    )
    for kind in ("DYNAMIC", "GATED", "GATED TOMO", "REPROJECTION"):
        yield Recipe(
            f"ImageType {kind}",
            change=_setting(ImageType=["ORIGINAL", "PRIMARY", kind, "EMISSION"]),
            reason=f"is a {kind} acquisition",
            **_stack(8, 128, 64),
        )
    yield Recipe(
        "transmission image",
        change=_setting(ImageType=[*WHOLE_BODY[:3], "TRANSMISSION"]),
        reason="transmission image",
    )
    yield Recipe("spot view", rows=256, reason="a matrix of 256x256")


def _stack(frames: int, rows: int, columns: int) -> dict[str, object]:
    return {"detectors": (None,), "frames": frames, "rows": rows, "columns": columns}


def _test_sources() -> Iterator[Recipe]:
    """Flood sources and bar phantoms; the last of each kind says nothing of what it is."""
    static = _setting(ImageType=["ORIGINAL", "PRIMARY", "STATIC", "EMISSION"])
    for name, draw, text in (
        ("flood", _uniform, "Co57 Flood"),
        ("bar phantom", _bars, "4-quadrant bar phantom"),
    ):
        source = {"detectors": (None,), "frames": 1, "draw": draw}
        yield Recipe(
            f"square {name}",
            rows=512,
            columns=512,
            change=static,
            reason="a matrix of 512x512",
            **source,
        )
        yield Recipe(
            f"named {name}",
            change=_setting(SeriesDescription=text),
            reason="uniform counts: a flood or bar phantom",
            by_pixels=True,
            **source,
        )
        yield Recipe(
            f"nameless {name} of a whole body's matrix",
            view=ANTERIOR,
            reason="uniform counts: a flood or bar phantom",
            by_pixels=True,
            **source,
        )


def _other_objects() -> Iterator[Recipe]:
    small = {"rows": 512, "columns": 128}
    for uid, modality in (
        (PositronEmissionTomographyImageStorage, "PT"),
        (EnhancedPETImageStorage, "PT"),
        (CTImageStorage, "CT"),
        (CTImageStorage, "NM"),
        ("1.2.840.10008.5.1.4.1.1.4", "MR"),
        ("1.2.840.10008.5.1.4.1.1.104.1", "DOC"),
    ):
        name = pydicom.uid.UID(uid).name
        yield Recipe(
            f"{name} of modality {modality}", change=_of_class(uid, modality), reason=name, **small
        )
    yield Recipe(
        "an object of a private class",
        change=_of_class("1.3.12.2.1107.5.9.1"),
        reason="an object of a private class",
        **small,
    )
    yield Recipe(
        "PET without SOPClassUID",
        change=_all(_of_class(PositronEmissionTomographyImageStorage), _setting(SOPClassUID=None)),
        reason=PositronEmissionTomographyImageStorage.name,
        **small,
    )
    for modality, said in (
        ("OT", "Modality OT"),
        (None, "no Modality"),
        (CANARY, "unknown Modality"),
    ):
        yield Recipe(
            f"Secondary Capture, {said}",
            change=_of_class(SECONDARY, modality),
            reason=said,
            **small,
        )
    yield Recipe("structured report", content=_report, reason=BasicTextSRStorage.name)
    yield Recipe("DICOMDIR", content=_dicomdir, reason="Media Storage Directory Storage")


def _report() -> bytes:
    dataset = _nuclear_medicine(np.zeros((1, 2, 2), np.uint16), (None,), 0)
    _of_class(BasicTextSRStorage, "SR", PixelData=None, Rows=None, Columns=None)(dataset)
    dataset.ValueType, dataset.TextValue = "TEXT", f"{CANARY}: whole body bone scan, NM"
    return _bytes_of(dataset)


def _dicomdir() -> bytes:
    """A directory of one nuclear medicine object."""
    dataset = _nuclear_medicine(np.zeros((1, 4, 2), np.uint16), (ANTERIOR,), 0)
    _with(dataset, StudyDate="20200101", StudyTime="120000", StudyID="1", SeriesNumber=1)
    dataset.InstanceNumber = 1
    files = FileSet()
    files.add(dataset)
    with tempfile.TemporaryDirectory() as folder:
        files.write(folder)
        return Path(folder, "DICOMDIR").read_bytes()


def _bytes_of(dataset: Dataset) -> bytes:
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    return content.getvalue()


def _unusable_pixels() -> Iterator[Recipe]:
    small = {"rows": 512, "columns": 128}
    yield Recipe(
        "negative pixels",
        dtype=np.int16,
        store=lambda counts: counts - np.int16(7),
        reason="negative pixels (lowest -7)",
        **small,
    )
    yield Recipe("RGB", change=_rgb, reason="colour image (a screen capture?)", **small)
    yield Recipe(
        "palette of a capture",
        dtype=np.uint8,
        change=_all(_of_class(SECONDARY), _setting(PhotometricInterpretation="PALETTE COLOR")),
        reason="colour image (PhotometricInterpretation)",
        **small,
    )
    yield Recipe("32 bit", dtype=np.uint32, reason="has 32 bits a pixel", **small)
    yield Recipe(
        "1 bit", change=_setting(BitsAllocated=1, BitsStored=1), reason="has 1 bits a pixel"
    )
    yield Recipe(
        "text in the pixels", change=_setting(BurnedInAnnotation="YES"), reason="BurnedInAnnotation"
    )
    yield Recipe("no pixels", change=_setting(PixelData=None), reason="has no PixelData")
    yield Recipe("no rows", change=_setting(Rows=0), reason="holds no image")
    yield Recipe(
        "more frames of pixels than NumberOfFrames",
        change=_setting(NumberOfFrames=1),
        reason="but its pixels are 2 frames",
    )


def _rgb(dataset: Dataset) -> None:
    gray = np.frombuffer(dataset.PixelData, "<u2").astype(np.uint8)
    _put_pixels(dataset, np.repeat(gray, 3))
    _with(dataset, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)


def _hostile() -> Iterator[Recipe]:
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        yield Recipe(
            f"{keyword} that climbs out of a folder",
            change=_setting(**{keyword: f"../../{CANARY}"}),
            notes=("a UID that is ill-formed",),
        )
    yield Recipe(
        "a size of gigabytes",
        change=_setting(Rows=60_000, Columns=30_000),
        reason="claims 60000x30000x2 pixels",
    )
    yield Recipe(
        "frames of gigabytes", change=_setting(NumberOfFrames=100_000), reason="1024x256x100000"
    )
    yield Recipe("deflated zeros without end", encode=_bomb, reason="inflates to more")
    yield Recipe(
        "deflated zeros without end or preamble",
        encode=_bomb,
        spoil=lambda content: content[132:],
        reason="inflates to more",
    )
    yield Recipe(
        "much more compressed data than pixels", encode=_padded, reason="more compressed data"
    )


def _bomb(source: Path, target: Path) -> None:
    _resaved(DeflatedExplicitVRLittleEndian, source, target)
    content = target.read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    deflater = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = bytes(2**20)
    body = b"".join(deflater.compress(zeros) for _ in range(60)) + deflater.flush()
    target.write_bytes(content[:start] + body)


def _padded(source: Path, target: Path) -> None:
    dataset = pydicom.dcmread(source)
    dataset.compress(JPEGLSLossless, generate_instance_uid=False)
    frames = list(generate_frames(dataset.PixelData, number_of_frames=2))
    _put_codestreams(dataset, JPEGLSLossless, [frame + bytes(2**21) for frame in frames])
    dataset.save_as(target)


# What broke on the way.


def _damaged() -> Iterator[Recipe]:
    small = {"rows": 512, "columns": 128}
    cut = {"reason": "the file is truncated"}
    yield Recipe("cut off in the pixels", spoil=lambda content: content[:-1000], **cut)
    yield Recipe(
        "cut off in the header",
        spoil=lambda content: content[:700],
        reason="has neither Rows nor Columns",
    )
    yield Recipe("cut off after the preamble", spoil=lambda content: content[:132], **cut)
    yield Recipe(
        "deflated and cut off",
        encode=partial(_resaved, DeflatedExplicitVRLittleEndian),
        spoil=lambda content: content[: len(content) // 2],
        reason="its deflated data is damaged or ends too early",
    )
    for syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        yield Recipe(
            f"cut off in {syntax.name}",
            encode=_compressed(syntax),
            spoil=lambda content: content[: len(content) * 2 // 3],
            **cut,
            **small,
        )
        yield Recipe(
            f"{syntax.name}, half of a codestream",
            encode=partial(_halved, syntax),
            reason="ends too early; export"
            if syntax == JPEGLSLossless
            else f"no decoder of {syntax.name}",
            **small,
        )
    yield from _foreign_codestreams()
    yield from _unread_syntaxes()


def _halved(syntax: str, source: Path, target: Path) -> None:
    dataset = pydicom.dcmread(source)
    dataset.compress(syntax, generate_instance_uid=False)
    first, second = generate_frames(dataset.PixelData, number_of_frames=2)
    _put_codestreams(dataset, syntax, [first, second[: len(second) // 4 * 2]])
    dataset.save_as(target)


def _foreign_codestreams() -> Iterator[Recipe]:
    """Encapsulated pixels that are not what the header says."""
    small = {"rows": 512, "columns": 128}
    for syntax in (JPEG2000Lossless, JPEGLSLossless):
        yield Recipe(
            f"{syntax.name} of another size",
            encode=partial(_foreign, syntax, np.zeros((1, 300, 100), np.uint16)),
            reason="its codestream says 300x100x1",
            **small,
        )
    yield Recipe(
        "JPEG Lossless of another size",
        encode=_foreign_jpeg,
        reason="its codestream says 64x32x1",
        **small,
    )
    yield Recipe(
        "RLE of another size",
        encode=partial(_foreign, RLELossless, np.zeros((1, 300, 100), np.uint16)),
        reason="no decoder of RLE Lossless",
        **small,
    )
    yield Recipe(
        "HTJ2K of another size",
        encode=partial(_foreign_htj2k),
        reason="its codestream says 512x128x1",
    )
    yield Recipe(
        "no codestream at all",
        (ANTERIOR,),
        encode=partial(_with_codestream, JPEG2000Lossless, lambda: CANARY.encode() * 100),
        reason="its codestream says nothing readable",
        **small,
    )
    yield Recipe(
        "fewer codestreams than frames",
        encode=partial(_with_codestream, HTJ2KLossless, (DATA / "htj2k_lrcp.j2c").read_bytes),
        reason="holds 1 compressed frames, not 2",
        **small,
    )


def _foreign(syntax: str, pixels: np.ndarray, source: Path, target: Path) -> None:
    dataset, other = pydicom.dcmread(source), pydicom.dcmread(source)
    other.NumberOfFrames, other.Rows, other.Columns = pixels.shape
    _put_pixels(other, pixels)
    other.compress(syntax, generate_instance_uid=False)
    (frame,) = generate_frames(other.PixelData, number_of_frames=1)
    _put_codestreams(dataset, syntax, [frame, frame])
    dataset.save_as(target)


def _foreign_jpeg(source: Path, target: Path) -> None:
    """The frame header of JPEG Lossless, 64x32 pixels of one component, and no pixels."""
    header = bytes.fromhex("ffd8 ffc3 000b 10 0040 0020 01 01 11 00 ffd9".replace(" ", ""))
    dataset = pydicom.dcmread(source)
    _put_codestreams(dataset, JPEGLosslessSV1, [header + b"\0"] * 2)
    dataset.save_as(target)


def _foreign_htj2k(source: Path, target: Path) -> None:
    dataset = pydicom.dcmread(source)
    _put_codestreams(dataset, HTJ2KLossless, [(DATA / "htj2k_lrcp.j2c").read_bytes()] * 2)
    dataset.save_as(target)


def _unread_syntaxes() -> Iterator[Recipe]:
    small = {"detectors": (ANTERIOR,), "rows": 512, "columns": 128}
    yield Recipe(
        "unknown transfer syntax",
        encode=partial(_with_codestream, "1.2.3.4.5", lambda: b"\0\0"),
        reason="is in an unknown transfer syntax",
        **small,
    )
    for uid in (
        "1.2.840.10008.1.2.4.55",
        "1.2.840.10008.1.2.4.92",
        "1.2.840.10008.1.2.4.94",
        "1.2.840.10008.1.2.4.102",
    ):
        name = pydicom.uid.UID(uid).name
        yield Recipe(
            name,
            encode=partial(_with_codestream, uid, lambda: b"\0\0"),
            reason=f"is compressed as {name}, which is not read",
            **small,
        )


def _no_dicom() -> Iterator[Recipe]:
    neither = {"reason": "not a DICOM file"}
    yield Recipe("empty file", content=lambda: b"", reason="the file is empty")
    yield Recipe("text", content=lambda: f"{CANARY}, whole body\n".encode() * 9, **neither)
    yield Recipe("a table", content=lambda: b"path,patient_id,label\na.dcm,P-1,normal\n", **neither)
    yield Recipe("an archive", content=_archive, **neither)
    yield Recipe("a PDF", content=lambda: b"%PDF-1.7\n" + bytes(500), **neither)
    yield Recipe("bytes at random", content=lambda: np.random.default_rng(0).bytes(9999), **neither)
    yield Recipe("only zeros", content=lambda: bytes(4096), **neither)
    yield Recipe("a file that is not there", content=lambda: None, reason="is not there")


def _archive() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(f"{CANARY}.dcm", bytes(128) + b"DICM")
    return content.getvalue()
