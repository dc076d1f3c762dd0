"""One study of one synthetic patient: from (seed, patient, study) to counts and lesion masks.

A pure function: nothing depends on other patients, on the process, or on the order of the work.
"""

import dataclasses
import datetime

import numpy as np

from tfds_builder.phantom import camera
from tfds_builder.phantom.anatomy import (
    COLUMNS,
    PIXEL_MM,
    ROWS,
    Outline,
    body_outline,
    place_skeleton,
    structure_uptakes,
)
from tfds_builder.phantom.disease import (
    Condition,
    Finding,
    Focus,
    sample_condition,
    sample_label,
)
from tfds_builder.phantom.patient import (
    Acquisition,
    Patient,
    sample_acquisition,
    sample_dates,
    sample_patient,
    sample_pose,
)
from tfds_builder.phantom.skeleton import Skeleton, reference_skeleton

SOFT_UPTAKE = 0.43
"""Uptake of soft tissue in the unit of the skeleton's table, set against clinical scans."""
MASK_SHARE = 0.35
"""A pixel belongs to a lesion where the lesion gives at least this share of its own peak."""
VISIBLE_SHARE = 0.25
"""A lesion is marked in a view only if its peak is at least this share of its surroundings."""


@dataclasses.dataclass(frozen=True)
class Scan:
    """One study. Views in order anterior, posterior; the posterior is as seen from behind.

    `counts` (2, 1024, 256) uint16; `expected` the same as float32 before the Poisson draw;
    `masks` (2, 1024, 256) uint8, 0 or the number of the lesion.
    """

    seed: int
    number: int
    study: int
    label: str
    patient: Patient
    acquisition: Acquisition
    date: datetime.date
    condition: Condition
    counts: np.ndarray
    expected: np.ndarray
    masks: np.ndarray


@dataclasses.dataclass(frozen=True)
class Case:
    """What stays the same over the studies of a patient."""

    label: str
    patient: Patient
    condition: Condition
    uptakes: np.ndarray
    dates: tuple[datetime.date, ...]


def _streams(seed: int, number: int) -> list[np.random.SeedSequence]:
    return np.random.SeedSequence([seed, number]).spawn(4)


def _generator(sequence: np.random.SeedSequence) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(sequence))


def sample_case(seed: int, number: int) -> Case:
    """Draws the patient `number` of the cohort `seed`: class, anatomy, findings, study dates."""
    anatomy, disease, schedule, _ = (_generator(s) for s in _streams(seed, number))
    skeleton = reference_skeleton()
    label = sample_label(disease)
    patient = sample_patient(anatomy, label)
    return Case(
        label=label,
        patient=patient,
        condition=sample_condition(label, patient, skeleton, disease),
        uptakes=structure_uptakes(skeleton, patient, anatomy),
        dates=sample_dates(schedule),
    )


def simulate(seed: int, patient: int, study: int = 0) -> Scan:
    """Makes study `study` (from 0) of patient `patient`; raises IndexError where he has fewer."""
    case = sample_case(seed, patient)
    date = case.dates[study]
    rng = _generator(_streams(seed, patient)[3].spawn(study + 1)[study])
    pose, acquisition = sample_pose(rng), sample_acquisition(rng)
    skeleton = reference_skeleton()
    condition = evolved(case.condition, study, rng)
    points = place_skeleton(skeleton, case.patient, pose)
    _resize(points, skeleton, "bladder", condition.bladder_size * float(rng.uniform(0.8, 1.2)))
    weights = _weights(skeleton, case.uptakes, condition, points)
    top = (ROWS * PIXEL_MM - case.patient.height_mm) / 2 + pose.shift_z
    outline = body_outline(case.patient, pose, top, camera.ATTENUATION_PER_MM)
    faces = (
        float(outline.front.max()) + acquisition.gap_front_mm,
        float(outline.back.min()) - acquisition.gap_back_mm,
    )
    soft = SOFT_UPTAKE * condition.soft_factor
    primary = camera.expected_primary(points, weights, outline, top, faces, soft)
    masks = _add_findings(primary, condition, points, outline, top, faces)
    if condition.buckle:
        _shade_buckle(primary[0], points[skeleton.named("vertebra_L5").start], top)
    views = camera.add_scatter(primary, acquisition.scatter_ratio)
    expected = camera.scaled_expectation(views, acquisition.counts_per_view, acquisition.background)
    expected, masks = camera.turn_posterior(expected), camera.turn_posterior(masks)
    return Scan(
        seed, patient, study, case.label, case.patient, acquisition, date, condition,
        camera.detect(expected, rng), expected, masks,
    )  # fmt: skip


def evolved(condition: Condition, study: int, rng: np.random.Generator) -> Condition:
    """The condition at a later study: lesions a little hotter or fainter, larger or smaller."""
    if study == 0:
        return condition
    findings = []
    for finding in condition.findings:
        heat, growth = rng.lognormal(0.03 * study, 0.15), rng.lognormal(0.02 * study, 0.08)
        foci = tuple(
            dataclasses.replace(
                focus,
                ratio=float(1 + (focus.ratio - 1) * heat),
                sigma_mm=tuple(float(s * growth) for s in focus.sigma_mm),
            )
            for focus in finding.foci
        )
        findings.append(dataclasses.replace(finding, foci=foci))
    return dataclasses.replace(condition, findings=tuple(findings))


def _resize(points: np.ndarray, skeleton: Skeleton, name: str, factor: float) -> None:
    structure = skeleton.named(name)
    part = points[structure.start : structure.stop]
    middle = part.mean(axis=0)
    part[:] = middle + (part - middle) * np.float32(factor)


def _weights(
    skeleton: Skeleton, uptakes: np.ndarray, condition: Condition, points: np.ndarray
) -> np.ndarray:
    uptakes = uptakes.copy()
    for name, factor in condition.factors.items():
        uptakes[skeleton.index[name]] *= factor
    weights = skeleton.weights * uptakes.astype(np.float32)[skeleton.owner]
    for finding in condition.findings:
        for focus in finding.foci if finding.cold else ():
            distance = (points - points[focus.point]) / (1.3 * np.asarray(focus.sigma_mm))
            weights *= 1 - 0.85 * np.exp(-0.5 * (distance**2).sum(axis=1)).astype(np.float32)
    return weights


def _add_findings(
    primary: np.ndarray,
    condition: Condition,
    points: np.ndarray,
    outline: Outline,
    top: float,
    faces: tuple[float, float],
) -> np.ndarray:
    """Adds all hot foci to the views (in place) and returns the masks of the true lesions."""
    surroundings = primary.copy()
    masks = np.zeros(primary.shape, np.uint8)
    strongest = np.zeros(primary.shape, np.float32)
    for finding in condition.findings:
        patches = [_focus_patches(f, points, outline, top, faces, surroundings)
                   for f in finding.foci]  # fmt: skip
        for view in range(2):
            given = np.zeros(primary.shape[1:], np.float32) if finding.number else None
            for window, images in patches:
                if not finding.cold:
                    primary[view][window] += images[view]
                if given is not None:
                    given[window] += images[view]
            if given is not None:
                _mark(finding, given, surroundings[view], strongest[view], masks[view])
    return masks


def _mark(
    finding: Finding,
    given: np.ndarray,
    around: np.ndarray,
    strongest: np.ndarray,
    mask: np.ndarray,
) -> None:
    peak = np.unravel_index(int(given.argmax()), given.shape)
    if given[peak] < VISIBLE_SHARE * around[peak] or given[peak] <= 0:
        return
    inside = (given >= MASK_SHARE * given[peak]) & (given > strongest)
    mask[inside] = finding.number
    strongest[inside] = given[inside]


def _focus_patches(
    focus: Focus,
    points: np.ndarray,
    outline: Outline,
    top: float,
    faces: tuple[float, float],
    surroundings: np.ndarray,
) -> tuple[tuple[slice, slice], list[np.ndarray]]:
    """The focus as both views see it: one window of the image and two patches of that window."""
    place = points[focus.point] + np.asarray(focus.offset_mm, np.float32)
    depth = [float(d[0]) for d in camera.depths(place[None], outline, top)]
    row = (place[2] + top) / PIXEL_MM - 0.5
    column = place[0] / PIXEL_MM + COLUMNS / 2 - 0.5
    reach = int(np.ceil(4 * (max(focus.sigma_mm) + 4) / PIXEL_MM))
    window = (
        slice(max(0, int(row) - reach), min(ROWS, int(row) + reach + 1)),
        slice(max(0, int(column) - reach), min(COLUMNS, int(column) + reach + 1)),
    )
    rows = (np.arange(window[0].start, window[0].stop) - row) * PIXEL_MM
    columns = (np.arange(window[1].start, window[1].stop) - column) * PIXEL_MM
    near = (
        slice(max(0, int(row) - 2), int(row) + 4),
        slice(max(0, int(column) - 2), int(column) + 4),
    )
    units, activities = [], []
    for view in range(2):
        blur = camera.system_sigma_mm(abs(faces[view] - place[1]))
        wide, tall = np.hypot(focus.sigma_mm[0], blur), np.hypot(focus.sigma_mm[2], blur)
        peak = np.exp(-camera.ATTENUATION_PER_MM * depth[view]) / (wide * tall)
        shape = np.exp(-0.5 * (rows / tall) ** 2)[:, None] * np.exp(-0.5 * (columns / wide) ** 2)
        units.append(peak * shape)
        around = surroundings[view][near]
        activities.append(float(around.mean()) / peak if around.size else 0.0)
    activity = (focus.ratio - 1) * min(activities)
    return window, [(activity * unit).astype(np.float32) for unit in units]


def _shade_buckle(view: np.ndarray, spine: np.ndarray, top: float) -> None:
    row, column = int((spine[2] + top + 15) / PIXEL_MM), int(spine[0] / PIXEL_MM + COLUMNS / 2)
    view[row - 7 : row + 8, column - 10 : column + 11] *= 0.45
