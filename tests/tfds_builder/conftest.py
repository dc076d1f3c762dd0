import csv
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

NM_STORAGE = "1.2.840.10008.5.1.4.1.1.20"
VIEW_CODES = {"anterior": "399321004", "posterior": "399001007"}

Writer = Callable[..., Path]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def body_mean(rows: int = 1024, columns: int = 256) -> np.ndarray:
    """Mean counts a pixel of something that lies like a body: head, trunk, legs, a hot spot."""
    down, across = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    mean = np.full((rows, columns), 0.08)
    for top, height, width, level in (
        (-0.8, 0.13, 0.4, 6),
        (-0.3, 0.38, 0.7, 5),
        (0.4, 0.5, 0.4, 2),
    ):
        mean += level * (((down - top) / height) ** 2 + (across / width) ** 2 < 1)
    return mean + 30 * (((down + 0.4) / 0.02) ** 2 + ((across - 0.2) / 0.1) ** 2 < 1)


@pytest.fixture
def draw_body(rng: np.random.Generator) -> Callable[..., np.ndarray]:
    """Draws counts (frames, rows, columns), each time others."""

    def draw(
        frames: int = 2, rows: int = 1024, columns: int = 256, dtype: type = np.uint16
    ) -> np.ndarray:
        return rng.poisson(body_mean(rows, columns), (frames, rows, columns)).astype(dtype)

    return draw


@pytest.fixture
def write_dicom(tmp_path: Path, draw_body: Callable[..., np.ndarray]) -> Writer:
    """Writes a nuclear medicine file; keywords override or, when None, remove elements."""

    def write(
        name: str = "scan.dcm",
        counts: np.ndarray | None = None,
        views: tuple[str | None, ...] = ("anterior", "posterior"),
        change: Callable[[Dataset], None] = lambda dataset: None,
        **elements: object,
    ) -> Path:
        if counts is None:
            counts = draw_body(len(views))
        dataset = _nuclear_medicine(counts, views)
        for keyword, value in elements.items():
            if value is None:
                del dataset[keyword]
            else:
                setattr(dataset, keyword, value)
        change(dataset)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, enforce_file_format=True)
        return path

    return write


def _nuclear_medicine(counts: np.ndarray, views: tuple[str | None, ...]) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = NM_STORAGE
    dataset.SOPClassUID = NM_STORAGE
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Modality = "NM"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "WHOLE BODY", "EMISSION"]
    dataset.PatientID = "H-0001"
    dataset.PatientName = "Doe^Jane"
    dataset.PatientSex = "F"
    dataset.PatientAge = "057Y"
    dataset.Manufacturer = "SIEMENS NM"
    frames, dataset.Rows, dataset.Columns = counts.shape
    dataset.NumberOfFrames = frames
    dataset.EnergyWindowVector = [1] * frames
    dataset.DetectorVector = list(range(1, frames + 1))
    dataset.DetectorInformationSequence = [_detector(view) for view in views]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = counts.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(counts.dtype.kind == "i")
    dataset.PixelSpacing = [2.4, 2.4]
    dataset.CountsAccumulated = int(counts.sum())
    dataset.PixelData = counts.tobytes()
    return dataset


def _detector(view: str | None) -> Dataset:
    detector = Dataset()
    detector.CollimatorType = "PARA"
    if view:
        code = Dataset()
        code.CodeValue = VIEW_CODES[view]
        code.CodingSchemeDesignator = "SCT"
        code.CodeMeaning = view
        detector.ViewCodeSequence = [code]
    return detector


@pytest.fixture
def write_manifest(tmp_path: Path) -> Writer:
    """Writes rows (dicts) as manifest.csv; the columns are all keys that occur."""

    def write(*rows: dict[str, object], name: str = "manifest.csv") -> Path:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(rows)
        return path

    return write


@pytest.fixture
def write_mask(tmp_path: Path) -> Writer:
    def write(name: str, pages: np.ndarray) -> Path:
        first, *others = [Image.fromarray(page) for page in pages]
        path = tmp_path / name
        first.save(path, save_all=True, append_images=others, compression="tiff_deflate")
        return path

    return write


@pytest.fixture
def cohort(write_dicom: Writer, write_manifest: Writer) -> Callable[[int], Path]:
    """Writes a cohort of small two-view files, patients taking the labels in turn."""
    labels = ("normal", "metastasis", "arthritis", "thyroid_carcinoma")

    def write(patients: int, **elements: object) -> Path:
        rows = []
        for n in range(patients):
            write_dicom(f"scans/{n}.dcm", **({"PatientID": f"H-{n}"} | elements))
            rows.append(
                {"path": f"scans/{n}.dcm", "patient_id": f"P{n}", "label": labels[n % len(labels)]}
            )
        return write_manifest(*rows)

    return write


@pytest.fixture(scope="session")
def nema_nm1() -> Path:
    """NEMA's NM1, a real anterior whole-body bone scan, from the package pydicom-data."""
    package = importlib.util.find_spec("data_store")
    if package is None or not package.submodule_search_locations:
        pytest.skip("pydicom-data is not installed")
    return Path(package.submodule_search_locations[0]) / "data" / "JPEG-LL.dcm"
