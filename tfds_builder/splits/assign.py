"""Divides patients into train, validation and test, or into folds.

In: pseudonyms with their labels and sites, who must stay together, splits that are already given or
known, shares and a seed. Out: one split a patient, the same for the same input.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from tfds_builder.classes import Classes
from tfds_builder.commandline.errors import UserError
from tfds_builder.manifest import SPLITS

FRACTIONS = (0.7, 0.15, 0.15)
FEWEST_FOLDS = 3
"""One fold to test, one to validate, and one at least to train."""


class TornGroup(Exception):
    """Two patients (pseudonyms, its `args`) who must stay together are given different splits."""


@dataclass(frozen=True)
class _Unit:
    """Patients who stay together; nearly always it is one patient alone."""

    patients: tuple[str, ...]
    label: str
    site: str
    given: str | None

    @property
    def size(self) -> int:
        return len(self.patients)


def shares_of(
    folds: int | None = None, fractions: tuple[float, float, float] = FRACTIONS
) -> dict[str, float]:
    """The share of patients that each split is to get: train, validation and test, or fold_N.

    Args:
      folds: how many, of equal shares; None: train, validation and test.
      fractions: shares of train, validation and test; they add up to 1.

    Raises:
      UserError: fewer folds than `FEWEST_FOLDS`.
    """
    if folds is None:
        return dict(zip(SPLITS, fractions, strict=True))
    if folds < FEWEST_FOLDS:
        raise UserError(
            f"--folds {folds}: at least {FEWEST_FOLDS} are needed, to test, to validate and to "
            "train on"
        )
    return {f"fold_{n}": 1 / folds for n in range(folds)}


def assign_splits(
    labels: Mapping[str, str],
    fixed: Mapping[str, str] | None = None,
    *,
    fractions: Mapping[str, float],
    classes: Classes,
    seed: int = 0,
    sites: Mapping[str, str] | None = None,
    groups: Iterable[Collection[str]] = (),
) -> dict[str, str]:
    """Gives every patient a split, class by class, and within a class site by site.

    A split that would be empty takes one patient from train, of the class that has most of them
    there, as long as train keeps one of that class.

    Within a site, patients without a fixed split are ordered by a hash of (seed, pseudonym) and
    fill what the splits lack, the last one first. A class of at least as many patients as splits
    has one in every split whose fraction is not zero.

    Sites change which patients are drawn, not how many of a class: from class to class each site
    takes of the splits that it is furthest behind in, the smallest site first, so that what cannot
    come out even falls on the largest.

    A group is placed as a whole. It counts as so many patients, under the most serious of their
    labels and at the site of the first by pseudonym, and takes the split that one of them is given.

    Args:
      labels: pseudonym -> label of every patient.
      fixed: pseudonym -> split of patients whose split is given or known.
      fractions: split -> share, as `shares_of` returns them; they add up to 1.
      classes: what the labels are.
      seed: another seed, another division.
      sites: pseudonym -> site, of patients whose site is known.
      groups: pseudonyms of patients who must stay together; groups that share one are joined.

    Returns:
      pseudonym -> split for every patient in `labels`. No order in the input plays a part but that
      of `fractions`.

    Raises:
      TornGroup: patients of one group are given different splits.
      UserError: a fold would be empty.
    """
    units = _units(labels, fixed or {}, sites or {}, groups, classes)
    units.sort(key=lambda unit: _order(seed, unit.patients[0]))
    splits: dict[str, str] = {}
    sizes = Counter(unit.site for unit in units for _ in unit.patients)
    progress: dict[str, Counter[str]] = {site: Counter() for site in sizes}
    sites_in_order = sorted(sizes, key=lambda site: (sizes[site], _order(seed, f"site {site}")))
    for label in classes.names:
        own = [unit for unit in units if unit.label == label]
        by_site = {site: [unit for unit in own if unit.site == site] for site in sites_in_order}
        splits |= _divide_class(by_site, _neediest_first(fractions, splits), progress)
    splits |= _filled(units, splits, fractions)
    empty = [name for name in fractions if name not in SPLITS and name not in splits.values()]
    if empty:
        raise UserError(
            f"{empty[0]} gets no patient: {len(labels)} patients are too few for "
            f"{len(fractions)} folds; use fewer --folds"
        )
    return splits


def _filled(
    units: Iterable[_Unit], splits: dict[str, str], fractions: Mapping[str, float]
) -> dict[str, str]:
    """What changes so that no split of train, validation and test is empty where it need not be."""
    in_train: dict[str, list[_Unit]] = {}
    for unit in units:
        if splits[unit.patients[0]] == "train":
            in_train.setdefault(unit.label, []).append(unit)
    changed: dict[str, str] = {}
    for name in reversed(SPLITS):
        if not fractions.get(name) or name in splits.values():
            continue
        # A unit whose split is given stays, and counts as one of its class.
        free = {
            label: [unit for unit in own if unit.given is None]
            for label, own in in_train.items()
            if len(own) > 1
        }
        label = max(free, key=lambda label: (bool(free[label]), len(in_train[label])), default=None)
        if label is None or not free[label]:
            continue
        unit = min(free[label], key=lambda unit: unit.size)
        in_train[label].remove(unit)
        changed |= dict.fromkeys(unit.patients, name)
    return changed


def _units(
    labels: Mapping[str, str],
    fixed: Mapping[str, str],
    sites: Mapping[str, str],
    groups: Iterable[Collection[str]],
    classes: Classes,
) -> list[_Unit]:
    return [
        _Unit(
            patients=patients,
            label=classes.stratum(labels[patient] for patient in patients),
            site=sites.get(patients[0], ""),
            given=_given_split(patients, fixed),
        )
        for patients in _joined(labels, groups)
    ]


def _joined(
    patients: Iterable[str], groups: Iterable[Collection[str]]
) -> Iterable[tuple[str, ...]]:
    """Who stay together, as far as groups that share a patient reach; by the first of each."""
    leaders: dict[str, str] = {}

    def leader(patient: str) -> str:
        while (above := leaders.get(patient, patient)) != patient:
            leaders[patient] = leaders.get(above, above)
            patient = above
        return patient

    for group in groups:
        first, *others = map(leader, group)
        leaders.update(dict.fromkeys(others, first))
    units: dict[str, list[str]] = {}
    for patient in sorted(patients):
        units.setdefault(leader(patient), []).append(patient)
    return map(tuple, units.values())


def _given_split(patients: tuple[str, ...], fixed: Mapping[str, str]) -> str | None:
    given = [patient for patient in patients if patient in fixed]
    for patient in given[1:]:
        if fixed[patient] != fixed[given[0]]:
            raise TornGroup(given[0], patient)
    return fixed[given[0]] if given else None


def _neediest_first(fractions: Mapping[str, float], splits: dict[str, str]) -> Mapping[str, float]:
    """Folds with the emptiest first; train, validation and test in their order.

    The first gets what is left over of a class. Were it always fold_0, that would add up there, and
    rare classes would leave out the last.
    """
    if set(fractions) <= set(SPLITS):
        return fractions
    have = Counter(splits.values())
    return dict(sorted(fractions.items(), key=lambda item: have[item[0]]))


def _divide_class(
    by_site: Mapping[str, list[_Unit]],
    fractions: Mapping[str, float],
    progress: Mapping[str, Counter[str]],
) -> dict[str, str]:
    """The splits of the patients of one class; adds them to the `progress` of their sites."""
    own = [unit for units in by_site.values() for unit in units]
    given = Counter(unit.given for unit in own if unit.given for _ in unit.patients)
    room = _room(sum(unit.size for unit in own), given, fractions)
    splits: dict[str, str] = {}
    for site, units in by_site.items():
        placed = progress[site]
        for unit in units:
            if unit.given:
                placed[unit.given] += unit.size
                splits |= dict.fromkeys(unit.patients, unit.given)
        free = [unit for unit in units if not unit.given]
        lacking = _site_numbers(
            sum(unit.size for unit in free), room, fractions, placed, Counter(splits.values())
        )
        for unit in free:
            fitting = [name for name in reversed(lacking) if lacking[name] >= unit.size]
            split = fitting[0] if fitting else max(lacking, key=lacking.__getitem__)
            lacking[split] -= unit.size
            room[split] -= unit.size
            placed[split] += unit.size
            splits |= dict.fromkeys(unit.patients, split)
    return splits


def _order(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()


def _room(count: int, given: Counter[str], fractions: Mapping[str, float]) -> dict[str, int]:
    """How many of a class of `count` patients each split gets beside those that it is given.

    Where given splits exceed their share, the splits that come first give way.
    """
    free = count - given.total()
    room = dict.fromkeys(fractions, 0)
    for name, share in reversed(_shares(count, fractions).items()):
        room[name] = min(max(share - given[name], 0), free)
        free -= room[name]
    return room


def _shares(count: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers of patients for each split: largest remainders, none empty where avoidable."""
    exact = [count * fraction for fraction in fractions.values()]
    shares = [int(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda n: (shares[n] - exact[n], n))
    for n in by_remainder[: count - sum(shares)]:
        shares[n] += 1
    if count >= len(shares):
        for n, fraction in enumerate(fractions.values()):
            if fraction > 0 and shares[n] == 0:
                shares[n] += 1
                shares[shares.index(max(shares))] -= 1
    return dict(zip(fractions, shares, strict=True))


def _site_numbers(
    count: int,
    room: Mapping[str, int],
    fractions: Mapping[str, float],
    placed: Counter[str],
    in_class: Counter[str],
) -> dict[str, int]:
    """How many of a site's free patients of a class each split gets, one by one.

    First what is even of the site's part of the class, then one more for those furthest behind.

    Args:
      count: free patients.
      room: how many more of the class each split may get, at all sites together.
      fractions: split -> share.
      placed: patients of the site in each split, of all classes so far.
      in_class: patients of the class in each split, at all sites so far.
    """
    numbers = dict.fromkeys(fractions, 0)
    reached = placed.total() + in_class.total() + 2 * count

    def claim(name: str) -> tuple[bool, bool, float]:
        share, more = fractions[name], numbers[name] + 1
        behind = share * reached - placed[name] - in_class[name]
        return more <= share * count + 1e-9, more < share * count + 1, behind - numbers[name]

    for _ in range(count):
        split = max((name for name in room if numbers[name] < room[name]), key=claim)
        numbers[split] += 1
    return numbers
