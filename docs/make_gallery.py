"""Draws docs/gallery.png: NEMA's NM1, a real scan, beside phantoms of the four classes.

    python docs/make_gallery.py

Needs the `dev` extra, whose package pydicom-data carries NM1 (JPEG-LL.dcm).
"""

import importlib.util
from pathlib import Path

import numpy as np
import pydicom
from matplotlib.figure import Figure

from tfds_builder.phantom import sample_case, simulate

SEED = 0
CLASSES = ("normal", "metastasis", "arthritis", "thyroid_carcinoma")


def nm1() -> np.ndarray:
    """NM1's counts, thinned to the counts of a clinical scan so that noise can be compared."""
    package = importlib.util.find_spec("data_store")
    if package is None:
        raise SystemExit("error: pydicom-data is missing; pip install '.[dev]'")
    path = Path(package.submodule_search_locations[0]) / "data" / "JPEG-LL.dcm"
    counts = pydicom.dcmread(path).pixel_array.squeeze()
    # 3.6 million counts, where the phantoms and clinical scans have about 0.5 million a view.
    return np.random.default_rng(SEED).binomial(counts.clip(0), 0.15)


def first_of(label: str) -> np.ndarray:
    """Both views of the first patient with a label."""
    number = next(n for n in range(1000) if sample_case(SEED, n).label == label)
    return simulate(SEED, number).counts


def main() -> None:
    """Draws and saves the picture."""
    panels = [("NM1 (real)\nanterior", nm1())]
    for label in CLASSES:
        anterior, posterior = first_of(label)
        name = label.replace("_", " ")
        panels += [(f"{name}\nanterior", anterior), ("\nposterior", posterior)]
    figure = Figure(figsize=(1.3 * len(panels), 5.0), layout="constrained")
    for axes, (title, counts) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        image = np.sqrt(counts[60:960])
        axes.imshow(image, cmap="Greys", vmin=0, vmax=np.percentile(image, 99.6))
        axes.set_title(title, fontsize=8, loc="left")
        axes.set_axis_off()
    path = Path(__file__).with_name("gallery.png")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    print(path)


if __name__ == "__main__":
    main()
