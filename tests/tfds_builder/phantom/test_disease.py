"""What the phantom's patients have: lesions and their records, harmless findings, difficulty."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from tfds_builder.phantom import LABELS, sample_case, simulate
from tfds_builder.phantom.body.patient import sample_patient
from tfds_builder.phantom.body.skeleton import reference_skeleton
from tfds_builder.phantom.camera import scan as scan_module
from tfds_builder.phantom.camera.grid import Grid
from tfds_builder.phantom.camera.protocol import DIFFICULTIES, Protocol
from tfds_builder.phantom.disease.condition import Finding, Focus, Shade
from tfds_builder.phantom.disease.confounders import MILD_RATIO
from tfds_builder.phantom.disease.disease import sample_condition, sample_label
from tfds_builder.phantom.disease.foci import (
    HALF_MAXIMUM,
    VISIBLE_CONTRAST,
    VISIBLE_SNR,
    LesionImage,
    describe_lesions,
    matched_filter_snr,
)
from tfds_builder.phantom.disease.lesions import ARTHRITIS_RATIO, REGIONS

SEED, PATIENTS = 20240229, 1500


@pytest.fixture(scope="module")
def patients():
    """(patient, condition) of many patients: as a cohort draws them, but without their images."""
    drawn = []
    for number in range(PATIENTS):
        rng = np.random.default_rng([SEED, number])
        label = sample_label(rng)
        patient = sample_patient(rng, label)
        drawn.append((patient, sample_condition(label, patient, reference_skeleton(), rng)))
    return drawn


@pytest.fixture(scope="module")
def scans():
    """The first scans of each class, by label."""
    found = {label: [] for label in LABELS}
    for number in range(60):
        label = sample_case(SEED, number).label
        if len(found[label]) < 3:
            found[label].append(simulate(SEED, number))
    return found


def _of(patients, label):
    return [(patient, condition) for patient, condition in patients if condition.label == label]


def _lesions(condition, kind=None):
    return [f for f in condition.findings if f.number and kind in (None, f.kind)]


def _shares(patients, has):
    """The share of the patients of each class that the condition holds of, by label."""
    return {
        label: float(np.mean([has(condition) for _, condition in _of(patients, label)]))
        for label in LABELS
    }


# What lesions there are, and where.


def test_lesions_are_those_of_the_class_and_perhaps_arthritis(patients):
    own = {
        "normal": (set(), set()),
        "metastasis": ({"metastasis"}, {"arthritis"}),
        "arthritis": ({"arthritis"}, set()),
        "thyroid_carcinoma": ({"thyroid"}, {"node", "metastasis", "arthritis"}),
    }
    for patient, condition in patients:
        kinds = {finding.kind for finding in _lesions(condition)}
        always, sometimes = own[condition.label]
        assert always <= kinds <= always | sometimes
        if condition.label == "arthritis":
            assert patient.age >= 40
        numbers = [finding.number for finding in _lesions(condition)]
        assert numbers == list(range(1, len(numbers) + 1))


def test_metastases_lie_where_clinics_find_them(patients):
    region = {name: key for key, value in REGIONS.items() for name in value.structures}
    counts, number = dict.fromkeys(REGIONS, 0), []
    for _, condition in _of(patients, "metastasis"):
        found = _lesions(condition, "metastasis")
        number.append(len(found))
        for finding in found:
            site = finding.site.removesuffix("_left").removesuffix("_right")
            counts[region[site]] += 1
    share = {name: count / sum(counts.values()) for name, count in counts.items()}
    assert share["spine"] > share["pelvis"] > share["ribs"] > share["sternum"]
    femur, humerus = (share[bone] + share[f"{bone} head"] for bone in ("femur", "humerus"))
    assert share["sternum"] > max(humerus, share["scapula"])
    listed = share["spine"] + share["pelvis"] + share["ribs"] + femur + humerus + share["skull"]
    assert listed > 0.88
    assert 3 <= np.mean(number) <= 6
    assert min(number) == 1
    assert max(number) > 12


def test_arthritis_is_mostly_bilateral_and_worse_with_age(patients):
    both, young, old = [], [], []
    for patient, condition in _of(patients, "arthritis"):
        found = _lesions(condition)
        sites = {finding.site for finding in found}
        for site in sites:
            other = site.replace("_left", "_x").replace("_right", "_left").replace("_x", "_right")
            both.append(other in sites)
        (young if patient.age < 60 else old).append(np.mean([f.foci[0].ratio for f in found]))
    assert np.mean(both) > 0.7
    assert np.mean(old) > np.mean(young)


def test_arthritis_of_other_patients_is_true_disease_and_rises_with_age(patients):
    for label in ("metastasis", "thyroid_carcinoma"):
        rate = {True: [], False: []}
        for patient, condition in _of(patients, label):
            found = _lesions(condition, "arthritis")
            rate[patient.age >= 55].append(bool(found))
            if found:
                assert max(f.foci[0].ratio for f in found) > ARTHRITIS_RATIO * 0.75
        assert 0.06 < np.mean(rate[False]) < 0.25
        assert 0.2 < np.mean(rate[True]) < 0.42


def test_carcinoma_is_in_the_bed_sometimes_in_nodes_sometimes_in_bone(patients):
    found = [
        {finding.kind for finding in _lesions(condition)}
        for _, condition in _of(patients, "thyroid_carcinoma")
    ]
    assert 0.3 < np.mean(["node" in kinds for kinds in found]) < 0.55
    assert 0.1 < np.mean(["metastasis" in kinds for kinds in found]) < 0.3


# What is no disease.


@pytest.mark.parametrize(
    "kind",
    ["injection_site", "contamination", "rib_fracture", "dental", "hydronephrosis", "urine_bag"],
)
def test_harmless_findings_are_as_frequent_in_every_class(patients, kind):
    def has(condition):
        return any(f.kind == kind and f.study in (None, 0) for f in condition.findings)

    _assert_alike(_shares(patients, has), patients)


@pytest.mark.parametrize("name", ["thyroid_isthmus", "thyroid_cartilage", "renal_pelvis_left"])
def test_unusual_uptakes_are_as_frequent_in_every_class(patients, name):
    _assert_alike(_shares(patients, lambda condition: name in condition.factors), patients, 0.05)


def _assert_alike(shares, patients, spare=0.0):
    overall = np.mean(list(shares.values()))
    assert overall > 0.01
    for label, share in shares.items():
        deviation = np.sqrt(overall * (1 - overall) / len(_of(patients, label)))
        assert share > 0, label
        assert abs(share - overall) < 4 * deviation + spare, shares


def test_benign_uptake_of_the_neck_is_as_common_as_carcinoma(patients):
    def benign(condition):
        names = {"thyroid_isthmus", "thyroid_cartilage", "salivary_left"}
        return bool(names & set(condition.factors)) or any(
            finding.kind == "nodule" for finding in condition.findings
        )

    others = [c for _, c in patients if c.label != "thyroid_carcinoma"]
    assert 0.18 < np.mean([benign(c) for c in others]) < 0.35


def test_degenerative_uptake_is_milder_than_disease_and_spares_diseased_joints(patients):
    seen = 0
    for _, condition in patients:
        diseased = {finding.site for finding in _lesions(condition, "arthritis")}
        for finding in condition.findings:
            if finding.kind == "degenerative":
                seen += 1
                assert max(f.ratio for f in finding.foci) < MILD_RATIO * 1.2 < ARTHRITIS_RATIO
                assert finding.site not in diseased
    assert seen > 500


def test_a_row_of_rib_fractures_is_on_neighbouring_ribs_of_one_side(patients):
    rows = 0
    for _, condition in patients:
        sites = [f.site.split("_")[1:] for f in condition.findings if f.kind == "rib_fracture"]
        if sites:
            rows += 1
            ribs = [int(number) for number, _ in sites]
            assert ribs == list(range(ribs[0], ribs[0] + len(ribs)))
            assert len(ribs) >= 2
            assert len({side for _, side in sites}) == 1
    assert rows > 30


# Difficulty and later studies.


def test_difficulty_changes_the_contrast_of_lesions_and_nothing_else():
    numbers = [n for n in range(40) if sample_case(SEED, n).condition.findings][:12]
    for number in numbers:
        case = {name: sample_case(SEED, number, Protocol(difficulty=name)) for name in DIFFICULTIES}
        usual = case["standard"]
        for name, other in case.items():
            assert other.patient == usual.patient
            assert other.dates == usual.dates
            factor = DIFFICULTIES[name].contrast
            for a, b in zip(usual.condition.findings, other.condition.findings, strict=True):
                assert (a.kind, a.site, a.number, a.cold) == (b.kind, b.site, b.number, b.cold)
                for f, g in zip(a.foci, b.foci, strict=True):
                    assert (f.point, f.sigma_mm, f.offset_mm) == (g.point, g.sigma_mm, g.offset_mm)
                    ratio = max(1 + (f.ratio - 1) * factor, 0) if a.number else f.ratio
                    assert g.ratio == pytest.approx(ratio)


def test_harder_scans_have_weaker_records():
    number = next(n for n in range(60) if sample_case(SEED, n).label == "metastasis")
    easy, usual, hard = (
        simulate(SEED, number, protocol=Protocol(difficulty=name))
        for name in ("easy", "standard", "hard")
    )
    for a, b, c in zip(easy.lesions, usual.lesions, hard.lesions, strict=True):
        assert (
            (a.number, a.site, a.side) == (b.number, b.site, b.side) == (c.number, c.site, c.side)
        )
        assert a.volume_ml == pytest.approx(c.volume_ml)
        if not b.cold:
            assert a.contrast > b.contrast > c.contrast
        assert a.snr > b.snr > c.snr


def test_later_studies_keep_anatomy_and_lesions_but_not_noise_and_injection():
    number = next(
        n
        for n in range(300)
        if (case := sample_case(SEED, n)).label == "metastasis" and len(case.dates) > 1
    )
    first, second = simulate(SEED, number, 0), simulate(SEED, number, 1)
    assert second.date > first.date
    assert second.patient == first.patient
    lasting = [[f for f in s.condition.findings if f.study is None] for s in (first, second)]
    places = [[(f.site, f.foci[0].point) for f in findings] for findings in lasting]
    assert places[0] == places[1]
    heat = [[f.foci[0].ratio for f in findings] for findings in lasting]
    assert heat[0] != heat[1]
    np.testing.assert_allclose(heat[1], heat[0], rtol=1.0)
    assert not np.array_equal(first.counts, second.counts)
    for study, scan in enumerate((first, second)):
        assert {f.study for f in scan.condition.findings} <= {None, study}
    with pytest.raises(IndexError):
        simulate(SEED, number, len(sample_case(SEED, number).dates))


# Masks and records.


def test_masks_hold_every_lesion_in_both_views_unless_another_covers_it(scans):
    held, lesions = 0, 0
    for label, group in scans.items():
        for scan in group:
            numbers = [record.number for record in scan.lesions]
            assert numbers == [finding.number for finding in _lesions(scan.condition)]
            assert bool(numbers) == (label != "normal")
            for mask in scan.masks:
                inside = set(np.unique(mask)) - {0}
                assert inside <= set(numbers)
                held, lesions = held + len(inside), lesions + len(numbers)
    assert lesions > 60
    assert held > 0.95 * lesions


def test_records_agree_with_the_findings_and_with_their_own_thresholds(scans):
    for scan in (scan for group in scans.values() for scan in group):
        for record, finding in zip(scan.lesions, _lesions(scan.condition), strict=True):
            assert f"{record.site}_{record.side}".rstrip("_") == finding.site
            assert (record.kind, record.cold) == (finding.kind, finding.cold)
            for contrast, snr, visible in zip(
                record.contrast, record.snr, record.visible, strict=True
            ):
                size = 1 / contrast if record.cold else contrast
                assert size > 1
                assert visible == (snr >= VISIBLE_SNR and size >= VISIBLE_CONTRAST)


def test_visible_lesions_are_hotter_in_the_counts_than_what_lies_about_them(scans):
    hotter = []
    for scan in (scan for group in scans.values() for scan in group):
        for view, mask, index in zip(scan.counts, scan.masks, (0, 1), strict=True):
            smooth = ndimage.gaussian_filter(view.astype(float), 1.5)
            for record in scan.lesions:
                inside = mask == record.number
                if record.cold or not record.visible[index] or inside.sum() < 12:
                    continue
                ring = ndimage.binary_dilation(inside, iterations=7) & (mask == 0)
                hotter.append(smooth[inside].max() > 1.15 * np.median(smooth[ring]))
    assert len(hotter) > 60
    assert np.mean(hotter) > 0.93


def test_snr_of_a_gaussian_on_a_flat_background_is_that_of_its_integral():
    rows, columns = np.mgrid[-40:41, -40:41]
    sigma, peak, flat = 3.0, 2.0, 5.0
    lesion = peak * np.exp(-0.5 * (rows**2 + columns**2) / sigma**2)
    expected = peak * sigma * np.sqrt(np.pi / flat)
    assert matched_filter_snr(lesion, np.full_like(lesion, flat)) == pytest.approx(expected)
    assert matched_filter_snr(-lesion, np.full_like(lesion, flat)) == pytest.approx(expected)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_record_of_a_known_lesion_on_a_flat_background(sign):
    grid = Grid(256, 256, 2.4)
    rows, columns = np.mgrid[-16:17, -16:17]
    shape = np.exp(-0.5 * (rows**2 + columns**2) / 3.0**2).astype(np.float32)
    window = (slice(84, 117), slice(54, 87))
    patch = sign * np.stack([shape, 0.5 * shape])
    expected = np.full((2, *grid.shape), 4.0, np.float32)
    expected[(slice(None), *window)] += 2.0 * patch
    focus = Focus(0, (10.0, 10.0, 10.0), 1.5)
    finding = Finding("metastasis", "rib_3_left", (focus,), 1, sign < 0)
    image = LesionImage(finding, 1.5, window, patch)
    (record,), masks = describe_lesions([image], expected, 2.0, 0.0, grid)
    assert (record.site, record.side, record.cold) == ("rib_3", "left", sign < 0)
    assert record.contrast == pytest.approx((1 + sign * 0.5, 1 + sign * 0.25))
    assert record.snr[0] == pytest.approx(2.0 * 3.0 * np.sqrt(np.pi / 4.0), rel=1e-3)
    assert record.snr[1] == pytest.approx(record.snr[0] / 2, rel=1e-3)
    assert record.visible == (True, False if sign > 0 else record.snr[1] >= VISIBLE_SNR)
    assert (masks[0] == masks[1]).all()
    assert masks[0, 100, 70] == 1
    radius = 3.0 * np.sqrt(2 * np.log(1 / 0.35))
    assert (masks[0] == 1).sum() == pytest.approx(np.pi * radius**2, rel=0.1)


def test_volume_is_that_of_the_ellipsoid_above_half_the_maximum(scans):
    for scan in scans["metastasis"]:
        for record, finding in zip(scan.lesions, _lesions(scan.condition), strict=True):
            each = [
                4 / 3 * np.pi * np.prod(HALF_MAXIMUM * np.asarray(f.sigma_mm)) / 1000
                for f in finding.foci
            ]
            assert each[0] * 0.999 <= record.volume_ml <= sum(each) * 1.001
            if len(each) == 1:
                assert record.volume_ml == pytest.approx(each[0], rel=1e-5)


# Single effects: the same patient with and without.


def _simulate_with(monkeypatch, number, **changes):
    """The expected counts of a patient whose condition is changed."""

    def changed(*arguments):
        case = sample_case(*arguments)
        return dataclasses.replace(case, condition=dataclasses.replace(case.condition, **changes))

    with monkeypatch.context() as patch:
        patch.setattr(scan_module, "sample_case", changed)
        return simulate(SEED, number)


def _first(wanted):
    return next(n for n in range(1000) if wanted(sample_case(SEED, n).condition))


def test_a_cold_lesion_takes_counts_where_its_mask_is(monkeypatch):
    number = _first(lambda condition: any(f.cold and f.number for f in condition.findings))
    findings = sample_case(SEED, number).condition.findings
    (cold,) = [f for f in findings if f.cold and f.number][:1]
    others = tuple(finding for finding in findings if finding is not cold)
    with_it = simulate(SEED, number)
    without = _simulate_with(monkeypatch, number, findings=others)
    record = with_it.lesions[cold.number - 1]
    assert record.cold
    assert max(record.contrast) < 1
    best = int(np.argmax(record.snr))
    inside = with_it.masks[best] == record.number
    ratio = with_it.expected[best] / without.expected[best]
    assert ratio[inside].min() < 0.95 * np.median(ratio)
    assert ratio[inside].min() == pytest.approx(record.contrast[best], abs=0.12)


def test_a_superscan_has_hot_bone_and_faint_soft_tissue_and_kidneys(monkeypatch):
    number = _first(
        lambda condition: (
            condition.factors.get("kidney_left", 1) < 0.3
            and condition.factors.get("vertebra_L3", 1) > 1.3
        )
    )
    superscan = simulate(SEED, number)
    usual = _simulate_with(monkeypatch, number, factors={}, soft_factor=1.0)
    assert len(superscan.lesions) >= 12

    def bone_to_soft(view):
        body = view[view > 0.5]
        return np.percentile(body, 95) / np.percentile(body, 40)

    for wide, narrow in zip(superscan.expected, usual.expected, strict=True):
        assert bone_to_soft(wide) > 1.5 * bone_to_soft(narrow)


def test_metal_dims_the_anterior_view_alone(monkeypatch):
    number = _first(lambda condition: not condition.shades)
    middle = reference_skeleton().named("vertebra_L3").start
    shade = Shade("buckle", middle, (24.0, 18.0), 0.5)
    plain = simulate(SEED, number).expected
    dimmed = _simulate_with(monkeypatch, number, shades=(shade,)).expected
    ratio = dimmed / plain
    ratio /= np.median(ratio[plain > 1])
    assert ratio[0].min() < 0.75
    area = (ratio[0] < 0.9).sum() * 2.4**2
    assert 0.6 * 48 * 36 < area < 2.0 * 48 * 36
    assert ratio[1].min() > 0.97


def test_lesions_behind_metal_lose_as_much_as_the_rest(monkeypatch):
    number = _first(lambda condition: condition.label == "metastasis" and not condition.shades)
    bare = simulate(SEED, number)
    point = bare.condition.findings[0].foci[0].point
    shade = Shade("buckle", point, (150.0, 150.0), 0.5)
    dimmed = _simulate_with(monkeypatch, number, shades=(shade,))
    assert dimmed.lesions[0].contrast == pytest.approx(bare.lesions[0].contrast, rel=0.08)
    assert dimmed.lesions[0].snr[0] < 0.85 * bare.lesions[0].snr[0]
