"""One study of one synthetic patient: from (seed, patient, study) to counts and lesion masks.

A pure function: nothing depends on other patients, on the process, or on the order of the work.
"""

import dataclasses
import datetime

import numpy as np

from tfds_builder.phantom.body.anatomy import place_skeleton, skeletal_activity, structure_uptakes
from tfds_builder.phantom.body.outline import body_outline
from tfds_builder.phantom.body.patient import (
    Acquisition,
    Patient,
    sample_acquisition,
    sample_dates,
    sample_patient,
    sample_pose,
)
from tfds_builder.phantom.body.skeleton import Skeleton, reference_skeleton
from tfds_builder.phantom.body.texture import (
    BONE_WAVES,
    SOFT_SHAPE,
    bone_factors,
)
from tfds_builder.phantom.camera import camera
from tfds_builder.phantom.camera.protocol import CAMERAS, COLLIMATORS, DIFFICULTIES, Protocol
from tfds_builder.phantom.disease.condition import Condition
from tfds_builder.phantom.disease.disease import sample_condition, sample_label
from tfds_builder.phantom.disease.foci import LesionRecord, add_findings, describe_lesions

STANDARD = Protocol()
"""What a clinic does: every parameter at its default."""
SIEMENS_SHARE = 0.5
"""Share of the patients whose clinic has a camera with Siemens-like headers."""
SOFT_SHARE = 0.51
"""Activity of soft tissue over that of the healthy skeleton, set against clinical scans.

What bone leaves spreads over the whole body, so that larger bodies have less of it per volume."""


@dataclasses.dataclass(frozen=True)
class Scan:
    """One study. Views in order anterior, posterior; the posterior is as seen from behind.

    `counts` (2, rows, columns) uint16; `expected` the same as float32 before the Poisson draw;
    `masks` (2, rows, columns) uint8, 0 or the number of the lesion; `lesions` by number.
    """

    seed: int
    number: int
    study: int
    protocol: Protocol
    label: str
    patient: Patient
    acquisition: Acquisition
    date: datetime.date
    condition: Condition
    counts: np.ndarray
    expected: np.ndarray
    masks: np.ndarray
    lesions: tuple[LesionRecord, ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """What stays the same over the studies of a patient."""

    label: str
    patient: Patient
    condition: Condition
    uptakes: np.ndarray
    bone_texture: np.ndarray
    soft_texture: np.ndarray
    dates: tuple[datetime.date, ...]
    camera: str


def _streams(seed: int, number: int) -> list[np.random.SeedSequence]:
    return np.random.SeedSequence([seed, number]).spawn(4)


def _generator(sequence: np.random.SeedSequence) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(sequence))


def sample_case(seed: int, number: int, protocol: Protocol = STANDARD) -> Case:
    """Draws the patient `number` of the cohort `seed`: class, anatomy, findings, study dates."""
    anatomy, disease, schedule, _ = (_generator(s) for s in _streams(seed, number))
    skeleton = reference_skeleton()
    label = sample_label(disease)
    patient = sample_patient(anatomy, label)
    return Case(
        label=label,
        patient=patient,
        condition=sample_condition(
            label, patient, skeleton, disease, DIFFICULTIES[protocol.difficulty].contrast
        ),
        uptakes=structure_uptakes(skeleton, patient, anatomy),
        bone_texture=anatomy.standard_normal(2 * BONE_WAVES),
        soft_texture=anatomy.standard_normal(SOFT_SHAPE),
        dates=sample_dates(schedule),
        camera=protocol.camera or CAMERAS[int(schedule.random() < SIEMENS_SHARE)],
    )


def simulate(
    seed: int,
    patient: int,
    study: int = 0,
    protocol: Protocol = STANDARD,
    case: Case | None = None,
) -> Scan:
    """Makes study `study` (from 0) of patient `patient`; raises IndexError where he has fewer.

    `case` is what `sample_case` draws of the same, where it is at hand.
    """
    case = case or sample_case(seed, patient, protocol)
    date = case.dates[study]
    rng = _generator(_streams(seed, patient)[3].spawn(study + 1)[study])
    pose, acquisition = sample_pose(rng), sample_acquisition(rng, protocol, case.camera)
    skeleton, grid = reference_skeleton(), protocol.grid
    condition = evolved(case.condition, study, rng)
    points = place_skeleton(skeleton, case.patient, pose)
    place = skeleton.named("bladder")
    bladder = points[place.start : place.stop]
    middle = bladder.mean(axis=0)
    fullness = np.float32(condition.bladder_size * float(rng.uniform(0.8, 1.2)))
    bladder[:] = middle + (bladder - middle) * fullness
    weights = _weights(skeleton, case.uptakes, condition)
    weights *= bone_factors(case.bone_texture)
    top = (grid.length_mm - case.patient.height_mm) / 2 + pose.shift_z
    outline = body_outline(case.patient, pose, grid, top, case.soft_texture)
    faces = (
        float(outline.front.max()) + acquisition.gap_front_mm,
        float(outline.back.min()) - acquisition.gap_back_mm,
    )
    scene = camera.Scene(outline, grid, COLLIMATORS[protocol.collimator], top, faces)
    bone = skeletal_activity(skeleton, case.uptakes)
    soft = SOFT_SHARE * bone / outline.soft_mm3 * condition.soft_factor
    primary = camera.expected_primary(points, weights, scene, soft)
    images = add_findings(primary, condition, points, weights, scene)
    views = camera.add_scatter(primary, acquisition.scatter_ratio, grid)
    expected = camera.scaled_expectation(views, acquisition.counts_per_view, acquisition.background)
    counts_per_primary = float((expected.max() - acquisition.background) / views.max())
    lesions, masks = describe_lesions(
        images, expected, counts_per_primary, acquisition.scatter_ratio, grid
    )
    expected, masks = camera.turn_posterior(expected), camera.turn_posterior(masks)
    return Scan(
        seed, patient, study, protocol, case.label, case.patient, acquisition, date, condition,
        camera.detect(expected, rng), expected, masks, lesions,
    )  # fmt: skip


def evolved(condition: Condition, study: int, rng: np.random.Generator) -> Condition:
    """The condition at one study: what is seen then, and how lesions changed since the first.

    They are a little hotter or fainter, larger or smaller.
    """
    findings = tuple(f for f in condition.findings if f.study in (None, study))
    if study:
        findings = tuple(
            finding.scaled(rng.lognormal(0.03 * study, 0.15), rng.lognormal(0.02 * study, 0.08))
            for finding in findings
        )
    return dataclasses.replace(condition, findings=findings)


def _weights(skeleton: Skeleton, uptakes: np.ndarray, condition: Condition) -> np.ndarray:
    uptakes = uptakes.copy()
    for name, factor in condition.factors.items():
        uptakes[skeleton.index[name]] *= factor
    return skeleton.weights * uptakes.astype(np.float32)[skeleton.owner]
