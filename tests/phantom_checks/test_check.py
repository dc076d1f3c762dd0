"""How synthetic patients are measured and compared with clinical scans."""

import csv
import dataclasses
import json
import math
import types
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from scipy import ndimage

from tests.phantom_checks import __main__ as command
from tests.phantom_checks import check
from tests.phantom_checks import measure as measure_module
from tests.phantom_checks.check import KNOWN_RANGES, VIEWS, WIDEST, Row, clinical, compare
from tests.phantom_checks.measure import (
    BANDS,
    FAR_MM,
    HOT_SPOTS,
    STATISTICS,
    Measured,
    background,
    contrast,
    find_body,
    measure,
    measure_patient,
    noise,
)
from tfds_builder.commandline.errors import UserError

DECIMALS = {
    "total_counts": 0,
    "mean_per_body_px": 9,
    "body_area_px": 0,
    "body_height_mm": 9,
    "max": 0,
    "quantiles_over_mean": 3,
    "longitudinal_fraction_20_bins_head_to_feet": 4,
    "body_width_mm_20_bins": 0,
    "midline_fraction_20_bins": 3,
}
"""To how many decimals the figures of NM1 are written."""
PIXEL_MM = 2.4


@pytest.fixture(scope="module")
def nm1():
    """Figures of NM1 as they are published with the calibration."""
    return json.loads(Path(__file__).with_name("calibration.json").read_text())["nm1_anterior"]


@pytest.fixture(scope="session")
def nm1_scan(nema_nm1):
    """NM1's counts, what `measure` says of them, and its body."""
    dataset = pydicom.dcmread(nema_nm1)
    counts = dataset.pixel_array.squeeze()
    return counts, measure(counts, float(dataset.PixelSpacing[0])), find_body(counts)


@pytest.mark.parametrize("name", DECIMALS)
def test_every_figure_of_nm1_is_reproduced(name, nm1, nm1_scan):
    expected = np.atleast_1d(nm1[name])
    assert len(expected) == len(STATISTICS[name].bins)
    np.testing.assert_allclose(
        nm1_scan[1][name].round(DECIMALS[name]), expected.round(DECIMALS[name]), rtol=1e-12
    )


def test_every_statistic_but_those_of_known_range_is_tested_on_nm1():
    assert set(DECIMALS) == set(STATISTICS) - set(KNOWN_RANGES)


def test_the_noise_of_a_real_scan_is_within_the_range_of_clinical_ones(nm1_scan):
    assert nm1_scan[1]["noise"] == pytest.approx(1, abs=0.02)


def block(rng, tall=800, wide=80, level=20.0, top=100):
    """Poisson counts of an even block on the right of the middle."""
    mean = np.zeros((1024, 256))
    mean[top : top + tall, 90 : 90 + wide] = level
    return rng.poisson(mean)


def test_an_even_block_has_the_statistics_that_can_be_reckoned(rng):
    counts = block(rng)
    found = measure(counts, PIXEL_MM)
    # Where the smoothed edge falls to 0.12, at 1.17 sigma, the body ends.
    assert found["body_height_mm"][0] == pytest.approx((800 + 2 * 3.5) * PIXEL_MM, abs=5)
    np.testing.assert_allclose(found["body_width_mm_20_bins"], (80 + 2 * 3) * PIXEL_MM, atol=5)
    assert found["body_area_px"][0] == pytest.approx(806 * 86, rel=0.02)
    assert found["total_counts"][0] == counts.sum()
    assert found["max"][0] == counts.max()
    assert found["mean_per_body_px"][0] == pytest.approx(counts.sum() / (806 * 86), rel=0.02)
    share = found["longitudinal_fraction_20_bins_head_to_feet"]
    np.testing.assert_allclose(share[1:-1], 1 / 20, rtol=0.05)
    assert share.sum() == pytest.approx(1)
    # 41 of the 80 columns lie within 20 of the middle one.
    np.testing.assert_allclose(found["midline_fraction_20_bins"], 41 / 80, atol=0.03)
    assert found["quantiles_over_mean"][2] == pytest.approx(20 * 806 * 86 / counts.sum(), rel=0.02)


def test_counts_are_shared_out_from_the_head_down(rng):
    counts = block(rng)
    counts[500:] //= 4
    share = measure(counts, PIXEL_MM)["longitudinal_fraction_20_bins_head_to_feet"]
    np.testing.assert_allclose(share[1:9].mean() / share[11:19].mean(), 4, rtol=0.1)


def test_lengths_alone_follow_the_pixel_size(rng):
    counts = block(rng)
    small, large = measure(counts, 1.2), measure(counts, 2.4)
    for name in STATISTICS:
        factor = 2 if "_mm" in name else 1
        np.testing.assert_allclose(large[name], small[name] * factor, err_msg=name)


def test_the_body_is_the_largest_region_with_its_holes_filled(rng):
    counts = block(rng)
    counts[300:330, 120:150] = 0
    counts[50:60, 10:20] = 200
    body = find_body(counts)
    assert body[300:330, 120:150].all()
    assert not body[:80].any()
    assert not body[:, :80].any()


@pytest.mark.parametrize("counts", [np.zeros((1024, 256)), np.eye(1024, 256)])
def test_a_view_without_a_body_is_refused(counts):
    with pytest.raises(UserError, match="no body"):
        measure(counts, PIXEL_MM)


def anatomy(level):
    """A body with ribs, a spine and a hot spot, as blurred as a camera blurs; mean counts."""
    down, across = np.mgrid[:1024, :256]
    mean = np.where((abs(across - 128) < 60) & (abs(down - 500) < 400), 1.0, 0.0)
    mean += 2.0 * (abs(across - 128) < 6) * (mean > 0) + 0.8 * (down % 20 < 5) * (mean > 0)
    mean[700:720, 100:120] += 30
    return ndimage.gaussian_filter(mean, 1.4) * level


@pytest.mark.parametrize("level", [3.0, 8.0, 30.0])
def test_poisson_counts_have_a_noise_of_one_whatever_the_anatomy(level, rng):
    counts = rng.poisson(anatomy(level))
    assert noise(counts, find_body(counts)) == pytest.approx(1, abs=0.06)


def test_noise_tells_rescaled_and_smoothed_counts(rng):
    counts = rng.poisson(anatomy(8.0))
    body = find_body(counts)
    assert noise(counts * 2, body) == pytest.approx(2, abs=0.12)
    assert noise(ndimage.gaussian_filter(counts * 1.0, 1.0), body) < 0.1


def test_the_background_is_taken_far_from_the_body(rng):
    counts = block(rng) + rng.poisson(0.07, (1024, 256))
    body = find_body(counts)
    near = ndimage.distance_transform_edt(~body) * PIXEL_MM < FAR_MM - 5
    spilt = counts + (near & ~body)
    assert background(spilt, body, PIXEL_MM) == pytest.approx(0.07, abs=0.005)
    assert background(spilt, body, PIXEL_MM * 2) > 0.1
    assert math.isnan(background(counts, np.ones_like(body), PIXEL_MM))


def test_contrast_compares_a_lesion_with_the_other_side(rng):
    counts = rng.poisson(np.full((1024, 256), 1000.0))
    lesion = np.zeros(counts.shape, bool)
    lesion[400:420, 60:80] = True
    counts[lesion] *= 5
    assert contrast(counts, lesion, 127.5) == [pytest.approx(5, rel=0.1)]
    assert contrast(counts, lesion, 70.0) == []
    assert contrast(counts, np.zeros_like(lesion), 127.5) == []
    assert contrast(counts, lesion, -100.0) == []


def cohort(spread=0.6, change=lambda name, values: values):
    """Patients that lie evenly about the clinical median, so many clinical ranges either way."""
    real = clinical()
    patients = []
    for step in np.linspace(-1, 1, 21):
        views = []
        for view in VIEWS:
            values = {}
            for name in STATISTICS:
                low, high = KNOWN_RANGES.get(name, (None, None))
                figures = real[view].get(name)
                middle = (low + high) / 2 if figures is None else figures["median"]
                range_ = high - low if figures is None else figures["max"] - figures["min"]
                values[name] = change(name, np.atleast_1d(middle + step * spread * range_))
            views.append(values)
        none = dict.fromkeys(HOT_SPOTS, ())
        patients.append(Measured(tuple(views), (none, none)))
    return patients


def test_a_cohort_like_the_clinical_scans_is_inside():
    rows = compare(cohort())
    assert len(rows) == 2 * (5 + 8 + 3 * BANDS + len(KNOWN_RANGES))
    assert all(row.passed for row in rows)
    assert check.summary(rows).startswith("150 of 150 inside, widest 1.1 times")


@pytest.mark.parametrize("shifted", STATISTICS)
@pytest.mark.parametrize("direction", [-1, 1])
def test_a_shift_of_one_statistic_is_found(shifted, direction):
    real = clinical()["anterior"]
    if shifted in KNOWN_RANGES:
        shift = 2 * max(KNOWN_RANGES[shifted])
    else:
        shift = 2 * (real[shifted]["max"] - real[shifted]["min"])
    patients = cohort(change=lambda n, v: v + direction * shift if n == shifted else v)
    failing = {row.statistic for row in compare(patients) if not row.passed}
    assert failing == {shifted}


def test_a_cohort_that_spreads_too_far_is_inside_but_fails():
    allowed, beyond = (WIDEST / 1.8 * factor for factor in (0.99, 1.01))
    assert all(row.verdict == "inside" for row in compare(cohort(spread=allowed)))
    rows = compare(cohort(spread=beyond))
    assert all(row.inside for row in rows)
    assert {row.verdict for row in rows} == {"too wide"}
    assert check.summary(rows).endswith("150 above the 6 allowed")
    assert not check.holds(rows)


def test_a_few_rows_may_spread_too_far_and_none_may_lie_outside():
    narrow, wide = ROW, dataclasses.replace(ROW, cohort=(5.0, 8.0, 70.0))
    outside = dataclasses.replace(ROW, cohort=(13.0, 14.0, 16.0))
    assert check.holds([narrow] * 95 + [wide] * 5)
    assert not check.holds([narrow] * 94 + [wide] * 6)
    assert not check.holds([narrow] * 99 + [outside])
    assert check.holds([narrow] * 99 + [dataclasses.replace(outside, judged=False)])


ROW = Row("anterior", "max", "", (10.0, 12.0, 20.0), (11.0, 13.0, 16.0))


@pytest.mark.parametrize(
    "changes, verdict, width",
    [
        ({}, "inside", 0.5),
        ({"cohort": (12.0, 13.0, 16.0)}, "inside", 0.4),
        ({"cohort": (12.1, 13.0, 16.1)}, "outside", 0.4),
        ({"cohort": (5.0, 8.0, 11.9)}, "outside", 0.69),
        ({"cohort": (5.0, 8.0, 65.1)}, "too wide", 6.01),
        ({"real": (12.0, 12.0, 12.0)}, "inside", math.nan),
        ({"real": (10.0, math.nan, 20.0)}, "inside", 0.5),
        ({"real": (13.1, math.nan, 20.0)}, "outside", 5 / 6.9),
        ({"cohort": (0.0, 1.0, 99.0), "judged": False}, "information", math.nan),
    ],
)
def test_the_verdict_on_a_row(changes, verdict, width):
    row = dataclasses.replace(ROW, **changes)
    assert row.verdict == verdict
    assert row.passed == (verdict in ("inside", "information"))
    assert row.width == pytest.approx(width, nan_ok=True)


def run(*options):
    command.main(["--patients", "21", *map(str, options)])


def test_what_is_written_and_printed_agree(tmp_path, monkeypatch, capsys):
    wide = cohort(change=lambda n, v: v * 3 if n == "body_area_px" else v)
    found = dict.fromkeys(HOT_SPOTS, (1.5, 2.5))
    wide = [dataclasses.replace(patient, hot_spots=(found, found)) for patient in wide]
    monkeypatch.setattr(command, "measure_cohort", lambda *_: wide)
    folder = tmp_path / "new" / "check"
    with pytest.raises(SystemExit, match="1"):
        run("--out", folder)
    lines = capsys.readouterr().out.splitlines()
    assert sum("OUTSIDE <<<" in line for line in lines) == 2
    assert lines[-1].startswith("148 of 150 inside, widest ")
    with (folder / "check.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["verdict"] for row in rows].count("outside") == 2
    assert [row["verdict"] for row in rows].count("information") == 2 * len(HOT_SPOTS)
    assert len(rows) == 156 == len(lines) - 3
    assert {row["real_median"] for row in rows if row["statistic"] == "noise"} == {""}
    picture = np.asarray(Image.open(folder / "check.png").convert("RGB"))
    assert picture.shape[0] > 800
    assert picture.shape[1] > 1600
    assert picture.std() > 10
    assert sorted(path.name for path in folder.iterdir()) == ["check.csv", "check.png"]


def test_all_inside_is_success_and_writes_nothing_unasked(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "measure_cohort", lambda *_: cohort())
    monkeypatch.chdir(tmp_path)
    run()
    assert "<<<" not in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_same_on_any_number_of_workers():
    one, two = (command.measure_cohort(2, 5, workers) for workers in (1, 2))
    np.testing.assert_equal([dataclasses.astuple(m) for m in one],
                            [dataclasses.astuple(m) for m in two])  # fmt: skip
    assert not np.array_equal(one[0].views[0]["max"], one[1].views[0]["max"])


def test_a_patient_without_a_body_is_named(monkeypatch):
    scan = types.SimpleNamespace(
        counts=np.zeros((2, 1024, 256), np.uint16), protocol=types.SimpleNamespace(pixel_mm=2.4)
    )
    monkeypatch.setattr(measure_module, "simulate", lambda *_: scan)
    with pytest.raises(UserError, match="patient 0 of seed 3: the view shows no body"):
        measure_patient(3, 0)


@pytest.mark.parametrize("option, value", [("--patients", 0), ("--seed", -1), ("--workers", 0)])
def test_what_cannot_be_checked_is_refused(option, value):
    with pytest.raises(UserError, match=f"{option} must be between"):
        run(option, value)


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "measure_cohort", lambda *_: cohort())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.check\.csv cannot be written"):
        run("--out", tmp_path / "file")
