import numpy as np
import pytest
from PIL import Image

from tfds_builder import build, inspect
from tfds_builder.errors import DataError


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
    with pytest.raises(DataError, match="holds no data set scintigraphy/views"):
        inspect.main(["--data_dir", str(tmp_path / "none")])
    options = ["--split", "fold_0", "--montage", str(tmp_path / "x.png")]
    with pytest.raises(DataError, match="no split 'fold_0'"):
        inspect.main(["--data_dir", str(data_dir), *options])
    with pytest.raises(DataError, match="--per_class 0"):
        inspect.main(["--data_dir", str(data_dir), "--per_class", "0"])
    with pytest.raises(DataError, match="cannot be written"):
        inspect.main(["--data_dir", str(data_dir), "--montage", str(tmp_path / "no" / "x.png")])
