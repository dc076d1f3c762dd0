import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest

from dscint_jax.evaluate.evaluate import evaluate
from dscint_jax.evaluate.restored import load_trained
from dscint_jax.explain import explanations
from dscint_jax.explain.__main__ import main
from dscint_jax.explain.explanations import measure, print_tables, write_explanations
from dscint_jax.explain.lesions import lesion_records
from dscint_jax.explain.maps import METHODS, explain
from dscint_jax.explain.scores import BASELINES, baseline_maps, energy, pointing, region_of
from dscint_jax.input_pipeline import Sample, load_split
from tfds_builder.commandline.errors import UserError

MAPS = (*METHODS, *BASELINES)


@pytest.fixture(scope="module")
def explained(trained, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("explained") / "run"
    shutil.copytree(trained, workdir)
    return workdir, write_explanations(workdir, split="train", checkpoint="best")


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_file_holds_the_scores_of_every_image_and_their_means(explained, data_dir):
    workdir, result = explained
    written = (workdir / "eval" / "train" / "explanations.json").read_text()
    assert json.loads(written, parse_constant=pytest.fail) == result
    images = load_split(data_dir, "train", pool=16, cache_gib=1.0)
    keys = images.keys()
    assert [row["image_id"] for row in result["by_image"]] == keys["image_id"].tolist()
    assert result["images"] == result["images_of_split"] == len(images)
    diseased = [row for row in result["by_image"] if row["label"] != "normal"]
    scored = [row for row in result["by_image"] if row["state"] == "scored"]
    # A lesion may be seen in one of the views alone.
    assert len(diseased) / 2 < len(scored) <= len(diseased)
    assert result["without_lesions"] == len(images) - len(scored)
    assert result["scores"]["all"]["images"] == len(scored)
    for score in ("pointing", "energy"):
        means = result["scores"]["all"][score]
        for name in MAPS:
            values = [row[score][name] for row in scored]
            assert means[name]["mean"] == pytest.approx(np.mean(values))
            assert min(values) >= 0
            assert max(values) <= 1
            # Of two of the classes there is one patient.
            assert means[name]["interval"] is None
        for found in result["scores"]["class"]["arthritis"][score].values():
            assert found["interval"][0] <= found["mean"] <= found["interval"][1]
    assert set(result["random_weights"]) == set(METHODS)
    grids = {"attention": [32, 8], "grad_cam": [16, 4], "gradient_input": [64, 16]}
    assert result["grids"] == grids


def test_scores_are_those_of_the_maps_and_masks_one_by_one(explained, data_dir):
    workdir, result = explained
    network = load_trained(workdir, split="train", checkpoint="best")
    n = next(n for n, row in enumerate(result["by_image"]) if row["state"] == "scored")
    (item,) = explain(network, np.array([n]))
    (record,) = lesion_records(network.config, network.images)(np.array([n]))
    region = region_of(record.mask > 0, record.pixel_mm, 16, result["tolerance_mm"])
    maps = item.heat | baseline_maps(item.views, record.pooled(16))
    for name, heat in maps.items():
        row = result["by_image"][n]
        assert row["pointing"][name] == pytest.approx(pointing(heat, region))
        assert row["energy"][name] == pytest.approx(energy(heat, region), rel=1e-4)


def test_explaining_again_gives_the_same_bytes(explained):
    folder = explained[0] / "eval" / "train"
    before = _files(folder)
    write_explanations(explained[0], split="train", checkpoint="best")
    assert _files(folder) == before


def test_tables_fit_80_columns_and_tell_every_map(explained, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_tables(explained[1])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for words in (
        "attention",
        "Grad-CAM",
        "gradient x input",
        *BASELINES,
        "neck (fixed)",
        "other (nonfixed)",
    ):
        assert words in text
    assert "random weights: rank correlation" in text
    assert "without lesions" in text


def test_limit_spreads_over_the_split_and_the_tolerance_counts(explained, tmp_path):
    options = {"split": "train", "checkpoint": "best", "out": tmp_path}
    result = write_explanations(explained[0], limit=7, **options)
    names = [row["image_id"] for row in explained[1]["by_image"]]
    assert [names.index(row["image_id"]) for row in result["by_image"]] == [
        n * len(names) // 7 for n in range(7)
    ]
    assert (tmp_path / "eval" / "train" / "explanations.json").exists()
    wide = write_explanations(explained[0], limit=7, tolerance_mm=1e6, **options)
    assert wide["scores"]["all"]["pointing"]["grad_cam"]["mean"] == 1.0
    assert wide["scores"]["all"]["energy"] == result["scores"]["all"]["energy"]


def test_data_set_without_masks_is_explained_and_not_scored(
    explained, make_data_set, tmp_path, capsys
):
    elsewhere = make_data_set(test=10)
    # Its images are of 64x16 pixels, the size that the network was trained on.
    workdir = tmp_path / "run"
    shutil.copytree(explained[0], workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["pool"] = 1
    (workdir / "config.json").write_text(json.dumps(config))
    result = write_explanations(
        workdir, split="test", checkpoint="best", data_dir=elsewhere, name="b", told=print_tables
    )
    output = capsys.readouterr().out
    assert "Not scored: none of the images has a lesion mask.\n" in output
    assert result["scores"] is None
    assert result["data_set"] == "b"
    assert all(row["energy"]["grad_cam"] is None for row in result["by_image"])
    assert result["random_weights"]["grad_cam"]["images"] > 0
    assert (workdir / "eval" / "b" / "test" / "explanations.json").exists()


def test_images_whose_pixel_size_is_not_known_are_counted(explained, monkeypatch):
    def without_size(*arguments):
        read = lesion_records(*arguments)
        return lambda indices: [
            dataclasses.replace(record, pixel_mm=np.full(len(record.mask), np.nan))
            for record in read(indices)
        ]

    monkeypatch.setattr(explanations, "lesion_records", without_size)
    network = load_trained(explained[0], split="train", checkpoint="best")
    measured = measure(network, np.arange(8), 15.0)
    assert "pixel_size_unknown" in measured.state
    assert np.isnan(measured.scores).all()
    reason = explanations._not_scored(network, measured)
    assert reason == "no record of an image with lesions says how large a pixel is"


def test_copies_are_explained_and_not_scored(explained, data_dir):
    network = load_trained(explained[0], split="train", checkpoint="best")
    copies = load_split(data_dir, "train", pool=16, cache_gib=1.0, copies=2)
    network = dataclasses.replace(network, images=copies)
    measured = measure(network, np.arange(8), 15.0)
    assert set(measured.state) == {"without_lesions"}
    assert "copies" in explanations._not_scored(network, measured)


def test_lesions_are_those_of_the_images_of_a_share(explained, data_dir):
    network = load_trained(explained[0], split="train", checkpoint="best")
    some = load_split(data_dir, "train", pool=16, cache_gib=1.0, sample=Sample(0.4, seed=0))
    assert len(some) < len(network.images)
    every, own = (
        lesion_records(network.config, images)(np.arange(len(images)))
        for images in (network.images, some)
    )
    places = some.sources(np.arange(len(some)))
    assert list(places) != list(range(len(some)))
    for record, place in zip(own, places, strict=True):
        np.testing.assert_array_equal(record.counts, every[place].counts)


@pytest.mark.exhaustive
def test_studies_are_explained_view_by_view(trained_on_studies, tmp_path):
    result = write_explanations(trained_on_studies, split="train", checkpoint="best", out=tmp_path)
    assert result["records"] == "studies"
    assert set(result["scores"]["view"]) >= {"both", "posterior"}
    assert result["scores"]["all"]["images"] > 3
    assert result["grids"]["attention"] == result["grids"]["grad_cam"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"limit": 0}, "--limit 0 explains nothing"),
        ({"tolerance_mm": -1.0}, "--tolerance -1.0 is no distance"),
        ({"tolerance_mm": float("nan")}, "--tolerance nan is no distance"),
        ({"split": "tets"}, "no split 'tets'"),
        ({"checkpoint": "999"}, "--checkpoint 999"),
        ({"name": "b"}, "leave --name out"),
    ],
)
def test_what_does_not_fit_is_one_line(explained, options, words, tmp_path):
    options = {"split": "train", "checkpoint": "best", "out": tmp_path} | options
    with pytest.raises(UserError, match=words) as error:
        write_explanations(explained[0], **options)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_command_explains_and_says_so(explained, tmp_path, capsys, monkeypatch):
    arguments = ("--workdir", explained[0], "--split", "test", "--limit", "5", "--out", tmp_path)
    monkeypatch.setattr(sys, "argv", ["explain", *map(str, arguments)])
    main()
    assert "test, step" in capsys.readouterr().out
    assert (tmp_path / "eval" / "test" / "explanations.json").exists()


def test_results_of_the_evaluation_stay_as_they_are(explained):
    evaluate(explained[0], split="test", checkpoint="best")
    folder = explained[0] / "eval" / "test"
    before = _files(folder)
    write_explanations(explained[0], split="test", checkpoint="best", limit=3)
    after = _files(folder)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"explanations.json"}
