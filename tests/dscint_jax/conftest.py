"""A small phantom cohort, built once, and runs trained on it."""

import csv
import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tensorflow_datasets as tfds

from dscint_jax.input_pipeline.records import TEXTS
from dscint_jax.training.train import train
from tfds_builder import build
from tfds_builder.phantom import __main__ as phantom

TESTS = Path(__file__).parent.parent
CLASSES = ("normal", "metastasis", "arthritis", "thyroid_carcinoma")
VIEWS = ("anterior", "posterior", "unknown")


def load_tiny_config():
    spec = importlib.util.spec_from_file_location("tiny", TESTS / "tiny.py")
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    return tiny.get_config()


def load_dual_view_config():
    """The tiny config with the dual-view network, on studies."""
    config = load_tiny_config()
    encoder = {name: config.model_options[name] for name in ("widths", "strides", "pool_after")}
    return config.replaced(
        {
            "data.records": "studies",
            "keep_last": 3,
            "model": "dual_view",
            "model_options": {
                "encoder": "dscint",
                "encoder_options": {**encoder, "attention_after": 2},
                "attention_hidden": 8,
                "dropout": 0.1,
            },
        }
    )


def keep_frame(scan: pydicom.Dataset, frame: int) -> None:
    """Leaves one frame of a scan, counted from 0, and what its header says of that frame."""
    pixels = scan.pixel_array[frame]
    scan.PixelData = pixels.tobytes()
    scan.CountsAccumulated = int(pixels.sum())
    scan.NumberOfFrames = scan.NumberOfDetectors = 1
    scan.EnergyWindowVector = scan.DetectorVector = [1]
    scan.DetectorInformationSequence = [scan.DetectorInformationSequence[frame]]
    for group, element in ((0x0011, 0x1012), (0x0011, 0x1030)):
        if (group, element) in scan:
            scan[group, element].value = scan[group, element].value[frame]


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    """24 phantoms, as files and a manifest."""
    folder = tmp_path_factory.mktemp("cohort") / "phantom"
    _run(phantom.main, "--out", folder, "--patients", "24", "--seed", "3")
    return folder


@pytest.fixture(scope="session")
def data_dir(cohort, tmp_path_factory) -> Path:
    """The data set of the phantoms' views."""
    return _build(cohort / "manifest.csv", tmp_path_factory.mktemp("views"))


@pytest.fixture(scope="session")
def studies_dir(cohort, tmp_path_factory) -> Path:
    """The data set of the same phantoms' studies, of which every fourth lacks a view."""
    with (cohort / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    manifest = cohort / "one_view.csv"
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "frame"])
        writer.writeheader()
        for n, row in enumerate(rows):
            writer.writerow(row | {"frame": 1 + n // 4 % 2 if n % 4 == 0 else ""})
    options = ("--config", "studies", "--one_view_studies", "keep")
    return _build(manifest, tmp_path_factory.mktemp("studies"), *options)


class _Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Random images of 64x16 pixels with the fields that training reads."""

    name = "scintigraphy"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="views")]  # noqa: RUF012

    def __init__(self, sizes, shared=0, scales=None, classes=CLASSES, patients=None, **kwargs):
        self._sizes, self._shared, self._scales = sizes, shared, scales or {}
        self._classes, self._patients = classes, patients
        super().__init__(**kwargs)

    def _info(self):
        features = {
            "image": tfds.features.Tensor(shape=(64, 16, 1), dtype=np.uint16),
            "label": tfds.features.ClassLabel(names=list(self._classes)),
            **{name: tfds.features.Text() for name in TEXTS},
            "view": tfds.features.ClassLabel(names=list(VIEWS)),
            "scale": np.float32,
            "lesion_mask": tfds.features.Tensor(shape=(64, 16, 1), dtype=np.uint8),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(
                fingerprint=f"made of {self._sizes} {self._classes} {self._patients}",
                class_counts={},
            ),
        )

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(name) for name in self._sizes}

    def _generate_examples(self, name):
        random = np.random.default_rng(list(name.encode()))
        classes = self._classes
        labels = random.integers(0, len(classes), self._sizes[name])
        counts = np.bincount(labels, minlength=len(classes)).tolist()
        self.info.metadata["class_counts"][name] = dict(zip(classes, counts, strict=True))
        for n, label in enumerate(labels):
            yield (
                n,
                {
                    "image": random.poisson(9, (64, 16, 1)).astype(np.uint16),
                    "label": classes[label],
                    "image_id": f"{name}-{n}",
                    "patient_key": self._patient(name, n),
                    "study_key": f"study of {self._patient(name, n)}",
                    "sex": "FM"[n % 2],
                    "age_band": "60-69",
                    "manufacturer": "Maker",
                    "site_key": "",
                    "view": "anterior",
                    "scale": self._scales.get(f"{name}-{n}", 9.0),
                    "lesion_mask": np.zeros((64, 16, 1), np.uint8),
                },
            )

    def _patient(self, split, n):
        if n < self._shared:
            return f"patient-{n}"
        return f"patient-{split}-{n if self._patients is None else n % self._patients}"


@pytest.fixture(scope="session")
def make_data_set(tmp_path_factory):
    """Makes a data set of random images with the given splits and numbers of images.

    The first `shared` images of every split are of the same patients; `scales` are those of some
    images, by their ids; `classes` are the data set's; `patients` share the images of a split.
    """

    def make(*, shared=0, scales=None, classes=CLASSES, patients=None, **sizes: int) -> Path:
        folder = tmp_path_factory.mktemp("made")
        tfds.disable_progress_bar()
        options = {"data_dir": folder, "file_format": "array_record"}
        made = _Made(sizes, shared, scales, classes, patients, **options)
        made.download_and_prepare()
        return folder

    return make


@pytest.fixture(scope="session")
def folds_dir(make_data_set) -> Path:
    """A data set in five folds of 11 to 15 images."""
    return make_data_set(**{f"fold_{n}": 11 + n for n in range(5)})


@pytest.fixture
def config(data_dir):
    """The tiny config, on the small cohort."""
    config = load_tiny_config()
    config = config.replaced({"data.dir": str(data_dir)})
    return config


@pytest.fixture(scope="session")
def trained(data_dir, tmp_path_factory) -> Path:
    """The work directory of one finished tiny run; tests only read it."""
    config = load_tiny_config()
    config = config.replaced({"data.dir": str(data_dir)})
    workdir = tmp_path_factory.mktemp("trained")
    train(config, workdir)
    return workdir


@pytest.fixture
def dual_view_config(studies_dir):
    """The dual-view config, on the small cohort's studies."""
    config = load_dual_view_config()
    config = config.replaced({"data.dir": str(studies_dir)})
    return config


@pytest.fixture(scope="session")
def trained_on_studies(studies_dir, tmp_path_factory) -> Path:
    """The work directory of one finished dual-view run; tests only read it."""
    config = load_dual_view_config()
    config = config.replaced({"data.dir": str(studies_dir)})
    workdir = tmp_path_factory.mktemp("trained_on_studies")
    train(config, workdir)
    return workdir


def _build(manifest: Path, data_dir: Path, *options: str) -> Path:
    arguments = ("--manifest", manifest, "--data_dir", data_dir, "--workers", "1")
    _run(build.main, *arguments, *options)
    return data_dir


def _run(main, *arguments) -> None:
    before = sys.argv
    sys.argv = ["command", *map(str, arguments)]
    try:
        main()
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """A finished run of one's own: what is measured of its data is kept in it."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(trained, workdir)
    return workdir
