"""What class a patient is of, and what he has: the lesions of his class and harmless findings.

In: label, patient, skeleton, generator. Out: `Condition`. The label follows the most serious
disease: a patient with metastases or thyroid carcinoma may have arthritis as well.
"""

import numpy as np

from tfds_builder.phantom.body.patient import Patient
from tfds_builder.phantom.body.skeleton import Skeleton
from tfds_builder.phantom.disease.condition import Chart, Condition
from tfds_builder.phantom.disease.confounders import add_confounders
from tfds_builder.phantom.disease.lesions import (
    add_arthritis,
    add_metastases,
    add_thyroid_carcinoma,
    coexisting_arthritis_rate,
)

LABELS = ("normal", "metastasis", "arthritis", "thyroid_carcinoma")
PROPORTIONS = (0.32, 0.26, 0.26, 0.16)
"""Share of each class among the patients: a choice of this phantom, normal the most frequent."""

_FEW_JOINTS = (0.5, 0.35, 0.15)


def sample_label(rng: np.random.Generator) -> str:
    """Draws a class with the documented proportions."""
    return LABELS[int(rng.choice(len(LABELS), p=PROPORTIONS))]


def sample_condition(
    label: str,
    patient: Patient,
    skeleton: Skeleton,
    rng: np.random.Generator,
    contrast: float = 1.0,
) -> Condition:
    """Draws the findings of a patient of that class; `contrast` changes no draw.

    It multiplies the contrast (ratio less one) of every true lesion.
    """
    chart = Chart(skeleton, patient, rng)
    soft = 1.0
    if label == "metastasis":
        soft = add_metastases(chart, contrast)
    elif label == "arthritis":
        add_arthritis(chart)
    elif label == "thyroid_carcinoma":
        add_thyroid_carcinoma(chart)
    both = label in ("metastasis", "thyroid_carcinoma")
    if both and chart.chance(coexisting_arthritis_rate(patient.age)):
        add_arthritis(chart, _FEW_JOINTS)
    add_confounders(chart)
    return Condition(
        label=label,
        findings=tuple(f.scaled(contrast) if f.number else f for f in chart.findings),
        factors=chart.factors,
        shades=tuple(chart.shades),
        soft_factor=soft * float(rng.lognormal(0, 0.03)),
        bladder_size=float(np.clip(rng.lognormal(0, 0.25), 0.55, 1.5)),
    )
