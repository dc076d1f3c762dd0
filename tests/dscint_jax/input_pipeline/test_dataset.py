import pytest

from dscint_jax.input_pipeline import open_dataset, parts_of
from tfds_builder.commandline.errors import UserError


def test_folds_are_counted_by_number_whatever_order_they_are_listed_in():
    names = sorted(f"fold_{n}" for n in range(12))
    assert parts_of("test", names, 9) == ("fold_9",)
    assert parts_of("validation", names, 9) == ("fold_10",)
    assert parts_of("validation", names, 11) == ("fold_0",)
    assert parts_of("train", names, 11) == tuple(f"fold_{n}" for n in range(1, 11))


def test_views_and_studies_are_data_sets_of_their_own(data_dir, studies_dir):
    with pytest.raises(UserError, match=r"scintigraphy/studies; .* --config studies$"):
        open_dataset(data_dir, "studies")
    with pytest.raises(UserError, match=rf"scintigraphy/views; .* --data_dir {studies_dir}$"):
        open_dataset(studies_dir)


def test_missing_data_set_is_named_with_the_command_that_builds_it(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}.*tfds_builder\.build"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        *(("val", "validation"), ("VAL", "validation"), ("dev", "validation")),
        *(("validatoin", "validation"), ("training", "train"), ("tests", "test"), ("Test", "test")),
    ],
)
@pytest.mark.parametrize("names", [("test", "train", "validation"), ("fold_0", "fold_1", "fold_2")])
def test_other_name_of_a_split_is_answered_with_the_one_that_is_meant(given, meant, names):
    fold = 0 if "fold_0" in names else -1
    with pytest.raises(UserError, match=rf"no split '{given}' .*; did you mean {meant}\?$"):
        parts_of(given, names, fold)


def test_split_that_resembles_none_is_no_question():
    with pytest.raises(UserError, match=r"it has train, test$"):
        parts_of("external", ("train", "test"), -1)
