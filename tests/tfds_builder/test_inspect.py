import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw

from tfds_builder import build, inspect
from tfds_builder.commandline.errors import UserError


@pytest.fixture
def data_dir(cohort, tmp_path):
    manifest = cohort(12)
    for config in ("views", "studies"):
        places = ["--manifest", str(manifest), "--data_dir", str(tmp_path / "data")]
        build.main([*places, "--config", config, "--workers", "1"])
    return tmp_path / "data"


def test_the_summary_counts_what_is_there(data_dir, capsys):
    inspect.main(["--data_dir", str(data_dir)])
    said = capsys.readouterr().out
    assert "patients, studies and images in two splits: 0" in said
    assert "maker: Siemens (24x)" in said
    assert "pixel spacing, mm: 2.40 (24x)" in said
    assert "view by: coded view (24x)" in said
    assert "sex: F (24x)" in said
    assert "age: 50-59 (24x)" in said


@pytest.mark.parametrize("config", ["views", "studies"])
def test_the_montage_shows_images_of_every_class(data_dir, tmp_path, config):
    out = tmp_path / "montage.png"
    options = ["--data_dir", str(data_dir), "--montage", str(out), "--per_class", "3"]
    inspect.main([*options, "--config", config])
    picture = np.asarray(Image.open(out).convert("L"))
    # Four rows of classes, each with something dark in it.
    for band in np.array_split(picture, 4):
        assert (band < 200).sum() > 1000
    assert [path.name for path in tmp_path.glob(".*.part")] == []


def test_all_splits_are_drawn_at_once_and_no_more_than_there_is(data_dir, tmp_path, capsys):
    out = tmp_path / "montage.png"
    options = ["--data_dir", str(data_dir), "--montage", str(out)]
    inspect.main([*options, "--split", "all", "--per_class", "1000"])
    assert "24 images of all" in capsys.readouterr().out
    # Six of a class side by side, each 64 pixels wide.
    assert 6 * 64 < Image.open(out).width < 7 * 72


def test_what_is_not_there_is_one_line(data_dir, tmp_path):
    with pytest.raises(UserError, match="holds no data set scintigraphy/views"):
        inspect.main(["--data_dir", str(tmp_path / "none")])
    options = ["--split", "fold_0", "--montage", str(tmp_path / "x.png")]
    with pytest.raises(UserError, match="no split 'fold_0'"):
        inspect.main(["--data_dir", str(data_dir), *options])
    with pytest.raises(UserError, match="--per_class 0"):
        inspect.main(["--data_dir", str(data_dir), "--per_class", "0"])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        inspect.main(["--data_dir", str(data_dir), "--montage", str(tmp_path / "file" / "x.png")])


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_damaged_metadata_is_one_line(data_dir, content):
    (metadata,) = (data_dir / "scintigraphy" / "views").glob("*/metadata.json")
    metadata.unlink()
    if content:
        metadata.write_text(content)
    with pytest.raises(UserError, match=r"cannot be read .*; build it again"):
        inspect.main(["--data_dir", str(data_dir)])


@pytest.mark.parametrize("config", ["views", "studies"])
def test_the_montage_says_which_view_a_picture_is(data_dir, tmp_path, config, monkeypatch):
    written = []
    draw = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, place, text, **how: (
            written.append((place, text)),
            draw(self, place, text, **how),
        ),
    )
    options = ["--data_dir", str(data_dir), "--montage", str(tmp_path / "m.png"), "--split", "all"]
    inspect.main([*options, "--config", config])
    views = [(place, text) for place, text in written if text in ("anterior", "posterior")]
    assert len(views) == 24
    rows = {place[0] for place, text in written if text.startswith("row ")}
    if config == "studies":
        # Side by side as in the record, anterior first.
        for (one, first), (other, second) in zip(views[::2], views[1::2], strict=True):
            assert (first, second, other[0] - one[0]) == ("anterior", "posterior", 64)
    else:
        assert {place[0] for place, _ in views} == rows


def test_the_montage_says_where_a_view_is_missing_or_unknown(write_dicom, write_manifest, tmp_path):
    write_dicom("a.dcm", views=("posterior",))
    write_dicom("b.dcm", views=(None,))
    rows = [{"path": f"{n}.dcm", "patient_id": n, "label": "normal"} for n in "ab"]
    manifest = write_manifest(*rows)
    places = ["--manifest", str(manifest), "--data_dir", str(tmp_path / "data"), "--workers", "1"]
    build.main(places)
    build.main([*places, "--config", "studies", "--one_view_studies", "keep"])
    said = {}
    for config in ("views", "studies"):
        builder = tfds.builder(f"scintigraphy/{config}", data_dir=tmp_path / "data")
        names = "+".join(builder.info.splits)
        source = builder.as_data_source(names)
        said[config] = {inspect.views_of(source[n]) for n in range(len(source))}
    assert said == {
        "views": {("posterior",), ("unknown",)},
        "studies": {("no anterior", "posterior")},
    }
