import hashlib
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tfds_builder.classes import PUBLISHED, classes_of
from tfds_builder.commandline.errors import UserError
from tfds_builder.manifest import SPLITS
from tfds_builder.splits import (
    FRACTIONS,
    TornGroup,
    assign_splits,
    check_division,
    shares_of,
)
from tfds_builder.splits.file import read_splits, splits_text


def patients(count: int, seed: int = 3) -> dict[str, str]:
    draw = random.Random(seed)
    return {f"{draw.getrandbits(64):016x}": draw.choice(PUBLISHED) for _ in range(count)}


def divide(labels, fixed=None, fractions=FRACTIONS, folds=None, **options) -> dict[str, str]:
    classes = classes_of(labels.values())
    return assign_splits(
        labels, fixed, classes=classes, fractions=shares_of(folds, fractions), **options
    )


def split_names(folds: int | None = None) -> tuple[str, ...]:
    return tuple(shares_of(folds))


def sites_of(labels: dict[str, str], sizes: tuple[int, ...]) -> dict[str, str]:
    names = [f"site-{n}" for n, size in enumerate(sizes) for _ in range(size)]
    random.Random(4).shuffle(names)
    return dict(zip(labels, names, strict=True))


def by_class(labels: dict[str, str], splits: dict[str, str]) -> Counter[tuple[str, str]]:
    return Counter((label, splits[patient]) for patient, label in labels.items())


# Frozen: a later version must leave every patient where an earlier one put them.
@pytest.mark.parametrize(
    "count, fractions, seed, given, digest",
    [
        (4, (0.7, 0.15, 0.15), 0, 0, "cedde6412721a5f6"),
        (13, (0.7, 0.15, 0.15), 0, 0, "98fea0c2db428b76"),
        (300, (0.7, 0.15, 0.15), 5, 0, "a203cc5fd76193bf"),
        (97, (0.5, 0.25, 0.25), 0, 0, "2e5903732634db05"),
        (61, (0.8, 0.0, 0.2), 2, 0, "e53180592c8c1eb1"),
        (200, (0.7, 0.15, 0.15), 1, 80, "cc5204d42c0571ab"),
        (90, (0.6, 0.2, 0.2), 7, 70, "f39e257c501bc029"),
    ],
)
def test_the_division_of_patients_without_sites_never_changes(
    count, fractions, seed, given, digest
):
    labels = patients(count)
    draw = random.Random(count)
    fixed = {patient: draw.choice(SPLITS) for patient in list(labels)[:given]}
    for alone in ({}, {"groups": [[patient] for patient in labels]}):
        splits = divide(labels, fixed, fractions, seed=seed, **alone)
        text = "".join(f"{patient} {splits[patient]}\n" for patient in sorted(splits))
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


def test_a_frozen_division_in_plain_sight():
    splits = divide(dict.fromkeys("abcdefghijkl", "normal"))
    assert "".join(p for p in sorted(splits) if splits[p] == "test") == "ik"
    assert "".join(p for p in sorted(splits) if splits[p] == "validation") == "eg"


def test_the_division_is_a_pure_function_of_pseudonyms_labels_and_seed():
    labels = patients(300)
    shuffled = list(labels.items())
    random.Random(1).shuffle(shuffled)
    assert divide(labels, seed=5) == divide(dict(shuffled), seed=5)
    assert divide(labels, seed=5) != divide(labels, seed=6)


@pytest.mark.parametrize("fractions", [(0.7, 0.15, 0.15), (0.5, 0.25, 0.25), (0.8, 0.0, 0.2)])
def test_every_class_is_divided_by_the_fractions(fractions):
    labels = patients(400)
    splits = divide(labels, fractions=fractions)
    assert splits.keys() == labels.keys()
    for label in PUBLISHED:
        own = [splits[patient] for patient in labels if labels[patient] == label]
        for split, fraction in zip(SPLITS, fractions, strict=True):
            assert abs(own.count(split) - fraction * len(own)) <= 1


@pytest.mark.parametrize("count", range(3, 12))
def test_a_small_class_is_in_every_split(count):
    splits = divide({f"{n}": "normal" for n in range(count)})
    assert set(splits.values()) == set(SPLITS)
    assert Counter(splits.values()).most_common(1)[0][1] == list(splits.values()).count("train")


def test_known_patients_stay_where_they_are_when_others_come():
    labels = patients(200)
    first = dict(list(labels.items())[:120])
    before = divide(first)
    after = divide(labels, fixed=before)
    assert {patient: after[patient] for patient in first} == before
    assert abs(Counter(after.values())["test"] - 30) <= len(PUBLISHED)


def test_given_splits_are_kept_even_against_the_fractions():
    labels = {f"{n}": "normal" for n in range(10)}
    given = {f"{n}": "test" for n in range(6)}
    splits = divide(labels, fixed=given)
    assert [splits[patient] for patient in given] == ["test"] * 6


def test_a_patient_with_two_labels_counts_under_the_most_serious():
    stratum = classes_of(PUBLISHED).stratum
    assert stratum(["normal", "arthritis"]) == "arthritis"
    assert stratum(["arthritis", "metastasis", "thyroid_carcinoma"]) == "metastasis"


SITE_SIZES = (200, 90, 31, 8, 3)


@pytest.mark.parametrize("folds", [None, 5])
@pytest.mark.parametrize("seed", range(4))
def test_every_site_gets_its_share_of_every_class_and_the_classes_keep_their_totals(folds, seed):
    labels = patients(sum(SITE_SIZES))
    sites = sites_of(labels, SITE_SIZES)
    splits = divide(labels, folds=folds, sites=sites, seed=seed)
    assert by_class(labels, splits) == by_class(labels, divide(labels, folds=folds, seed=seed))
    for site in set(sites.values()):
        for label in PUBLISHED:
            own = [splits[p] for p in labels if sites[p] == site and labels[p] == label]
            for split, share in shares_of(folds).items():
                assert abs(own.count(split) - share * len(own)) < 2


def test_many_sites_of_one_patient_are_not_all_trained_on():
    labels = dict.fromkeys((f"{n}" for n in range(40)), "normal")
    splits = divide(labels, sites={patient: f"site-{patient}" for patient in labels})
    assert Counter(splits.values()) == {"train": 28, "validation": 6, "test": 6}


def test_a_new_site_is_divided_by_the_fractions_while_known_patients_stay():
    labels = dict.fromkeys((f"{n}" for n in range(140)), "normal")
    first = dict.fromkeys(list(labels)[:100], "normal")
    sites = {patient: "old" if patient in first else "new" for patient in labels}
    before = divide(first, sites=sites)
    after = divide(labels, before, sites=sites)
    assert {patient: after[patient] for patient in first} == before
    new = Counter(after[patient] for patient in labels if patient not in first)
    assert new == {"train": 28, "validation": 6, "test": 6}


@pytest.mark.parametrize("folds", [None, 5])
def test_a_group_is_in_one_split_and_the_totals_stay(folds):
    labels = patients(240)
    own = {label: [p for p in labels if labels[p] == label] for label in PUBLISHED}
    groups = [ps[n : n + 2] for ps in own.values() for n in range(0, 20, 2)]
    splits = divide(labels, folds=folds, groups=groups)
    assert splits.keys() == labels.keys()
    for a, b in groups:
        assert splits[a] == splits[b]
    assert len({splits[a] for a, _ in groups}) > 1
    alone = by_class(labels, divide(labels, folds=folds))
    for key, count in by_class(labels, splits).items():
        assert abs(count - alone[key]) <= 1


def test_a_group_goes_where_it_fits_so_that_a_small_class_is_in_every_split():
    for n in range(20):
        labels = {f"{n}-{k}": "normal" for k in range(5)}
        splits = divide(labels, groups=[[f"{n}-1", f"{n}-3"]])
        assert Counter(splits.values()) == {"train": 3, "validation": 1, "test": 1}


def test_a_group_too_large_for_any_share_is_placed_all_the_same():
    labels = {f"{n}": "normal" for n in range(10)}
    splits = divide(labels, groups=[[f"{n}" for n in range(9)]])
    assert {splits[f"{n}"] for n in range(9)} == {"train"}


def test_many_copies_of_one_scan_are_joined_in_little_time():
    labels = dict.fromkeys((f"{n:05}" for n in range(20_000)), "normal")
    started = time.process_time()
    for groups in ([("00000", one) for one in labels], [(one, "00000") for one in labels]):
        assert len(set(divide(labels, groups=groups).values())) == 1
    assert time.process_time() - started < 8


def test_groups_that_share_a_patient_are_one_in_whatever_order_they_come():
    labels = patients(60)
    a, b, c, d, e, f = list(labels)[:6]
    groups = [[a, b], [c, d], [e, f], [d, a]]
    splits = divide(labels, groups=groups)
    assert len({splits[p] for p in (a, b, c, d)}) == 1
    assert splits == divide(labels, groups=[group[::-1] for group in reversed(groups)])


def test_a_group_takes_the_split_that_one_of_it_is_given():
    labels = patients(30)
    a, b, c = list(labels)[:3]
    for given in (a, b, c):
        splits = divide(labels, {given: "validation"}, groups=[{a, b, c}])
        assert {splits[p] for p in (a, b, c)} == {"validation"}


def test_a_group_given_two_splits_is_refused_with_both_patients():
    labels = dict.fromkeys("abcd", "normal")
    with pytest.raises(TornGroup) as caught:
        divide(labels, {"b": "test", "c": "train"}, groups=["abc"])
    assert caught.value.args == ("b", "c")


def test_a_group_counts_under_its_most_serious_label():
    labels = {f"m{n}": "metastasis" for n in range(4)} | {f"n{n}": "normal" for n in range(5)}
    splits = divide(labels, groups=[["n0", "m0"]])
    serious = [splits.pop(patient) for patient in ("m0", "m1", "m2", "m3", "n0")]
    assert Counter(serious) == {"train": 3, "validation": 1, "test": 1}
    assert Counter(splits.values()) == {"train": 2, "validation": 1, "test": 1}


@pytest.mark.parametrize(
    "counts, sizes",
    [
        ((2, 2, 2, 2), (6, 1, 1)),
        ((2, 2), (2, 1, 1)),
        ((2, 1, 1, 1), (4, 0, 1)),
        ((1, 1, 1, 1), (4, 0, 0)),
        ((3, 2), (3, 1, 1)),
        ((2,), (1, 0, 1)),
        ((1,), (1, 0, 0)),
    ],
)
def test_few_patients_leave_every_class_in_train_and_no_split_empty_without_need(counts, sizes):
    labels = {f"{name}{n}": name for name, own in zip(PUBLISHED, counts, strict=False)
              for n in range(own)}  # fmt: skip
    for seed in range(5):
        splits = divide(labels, seed=seed)
        found = Counter(splits.values())
        assert tuple(found[name] for name in SPLITS) == sizes
        in_train = {labels[patient] for patient in labels if splits[patient] == "train"}
        assert in_train == set(labels.values())


def test_a_given_split_is_not_taken_to_fill_an_empty_one():
    labels = dict.fromkeys("ab", "normal")
    assert divide(labels, {"a": "train", "b": "train"}) == {"a": "train", "b": "train"}
    assert divide(labels, {"a": "train"}) == {"a": "train", "b": "test"}
    assert divide(labels, fractions=(1, 0, 0)) == {"a": "train", "b": "train"}


@pytest.mark.parametrize("folds", [3, 5, 10])
def test_folds_are_of_one_size_in_every_class_and_in_all(folds):
    labels = patients(203)
    splits = divide(labels, folds=folds)
    assert set(splits.values()) == set(split_names(folds))
    for label in PUBLISHED:
        sizes = [by_class(labels, splits)[label, name] for name in split_names(folds)]
        assert max(sizes) - min(sizes) <= 1
    sizes = Counter(splits.values()).values()
    assert max(sizes) - min(sizes) <= 2


def test_rare_classes_together_fill_every_fold():
    labels = {f"{label}{n}": label for label in PUBLISHED for n in range(3)}
    assert len(set(divide(labels, folds=10).values())) == 10


def test_a_fold_without_patients_and_too_few_folds_are_refused():
    with pytest.raises(UserError, match=r"fold_3 gets no patient.*--folds"):
        divide(dict.fromkeys("abc", "normal"), folds=4)
    with pytest.raises(UserError, match=r"--folds 2: at least 3"):
        split_names(2)


def check(found, folds):
    check_division(set(found), split_names(folds), Path("splits.csv"))


def test_given_splits_of_another_division_are_refused():
    with pytest.raises(UserError, match=r"splits\.csv divides into train, validation, test, not"):
        check(["train", "test"], 5)
    with pytest.raises(UserError, match=r"into 5 folds, not into train, validation, test: use"):
        check(split_names(5), None)
    with pytest.raises(UserError, match=r"into 6 folds, not into 5 folds"):
        check(["fold_5", "fold_2"], 5)
    with pytest.raises(UserError, match=r"into fold_0, train, not"):
        check(["train", "fold_0"], 5)


def test_given_splits_may_be_some_of_them_but_a_whole_division_may_not():
    check([], 5)
    check(["test"], None)
    check(["fold_1", "fold_4"], 5)
    check(split_names(5), 5)
    with pytest.raises(UserError, match=r"into 4 folds, not into 5 folds"):
        check(split_names(4), 5)


@pytest.mark.parametrize("folds", [None, 12])
def test_the_file_reads_back(tmp_path, folds):
    labels = patients(40)
    known = {p: (labels[p], split) for p, split in divide(labels, folds=folds).items()}
    path = tmp_path / "splits.csv"
    path.write_text(splits_text(known))
    assert read_splits(path) == known
    assert read_splits(tmp_path / "none.csv") == {}


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "row 1 must be"),
        ("a,b\n", "row 1 must be"),
        ("KEY,normal\n", "row 2: not patient_key"),
        ("KEY,?,train\n", "row 2: not patient_key"),
        ("KEY,normal,fold_\n", "row 2: not patient_key"),
        ("KEY,normal,fold_01\n", "row 2: not patient_key"),
        ("KEY,normal,train\nKEY,normal,test\n", "row 3: .* occurs twice"),
        ("KEY,normal,train\n4.78338E+15,normal,test\n", "row 3: .* not 16 hexadecimal digits"),
        ("KEY,normal,train\n4783380000000,normal,test\n", "row 3: .* not 16 hexadecimal digits"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, text, said):
    path = tmp_path / "splits.csv"
    header = "patient_key,label,split\n" if "KEY" in text else ""
    path.write_text(header + text.replace("KEY", "4783380000000e01"))
    with pytest.raises(UserError, match=rf"splits\.csv: {said}"):
        read_splits(path)
