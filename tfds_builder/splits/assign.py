"""Divides patients into train, validation and test, or into folds.

In: pseudonyms with their labels and sites, who must stay together, splits that are already given or
known, shares and a seed. Out: one split a patient, the same for the same input.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from tfds_builder.classes import Classes, classes_of
from tfds_builder.commandline.errors import UserError
from tfds_builder.manifest import SPLITS


class TornGroup(UserError):
    """Two patients (pseudonyms) who must stay together are given different splits."""

    def __init__(self, patients: tuple[str, str], splits: tuple[str, str]):
        super().__init__(
            f"the same scan stands under patient {patients[0]} in '{splits[0]}' and under patient "
            f"{patients[1]} in '{splits[1]}'; give both patients the same split"
        )
        self.patients = patients
        self.splits = splits


@dataclass(frozen=True)
class _Unit:
    """Patients who stay together; nearly always it is one patient alone."""

    first: str
    patients: tuple[str, ...]
    label: str
    site: str
    given: str | None

    @property
    def size(self) -> int:
        return len(self.patients)


def assign_splits(
    labels: Mapping[str, str],
    fixed: Mapping[str, str] | None = None,
    *,
    fractions: Mapping[str, float],
    classes: Classes | None = None,
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
      classes: what the labels are; by default, those that occur.
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
    classes = classes or classes_of(labels.values())
    units = _units(labels, fixed or {}, sites or {}, groups, classes)
    splits: dict[str, str] = {}
    progress: dict[str, Counter[str]] = {unit.site: Counter() for unit in units}
    sizes = Counter()
    for unit in units:
        sizes[unit.site] += unit.size
    sites_in_order = sorted(sizes, key=lambda site: (sizes[site], _order(seed, f"site {site}")))
    for label in classes.names:
        own = [unit for unit in units if unit.label == label]
        by_site = {site: [unit for unit in own if unit.site == site] for site in sites_in_order}
        splits |= _divide_class(by_site, _neediest_first(fractions, splits), progress, seed)
    splits |= _filled(units, splits, fractions, seed)
    empty = [name for name in fractions if name not in SPLITS and name not in splits.values()]
    if empty:
        raise UserError(
            f"{empty[0]} gets no patient: {len(labels)} patients are too few for "
            f"{len(fractions)} folds; use fewer --folds"
        )
    return splits


def _filled(
    units: Iterable[_Unit], splits: dict[str, str], fractions: Mapping[str, float], seed: int
) -> dict[str, str]:
    """What changes so that no split of train, validation and test is empty where it need not be."""
    in_train: dict[str, list[_Unit]] = {}
    for unit in sorted(units, key=lambda unit: _order(seed, unit.first)):
        if splits[unit.first] == "train":
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
            first=patients[0],
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
            raise TornGroup((given[0], patient), (fixed[given[0]], fixed[patient]))
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
    seed: int,
) -> dict[str, str]:
    """The splits of the patients of one class; adds them to the `progress` of their sites."""
    own = [unit for units in by_site.values() for unit in units]
    have = Counter()
    for unit in own:
        if unit.given:
            have[unit.given] += unit.size
    totals = _totals(sum(unit.size for unit in own), have, fractions)
    splits: dict[str, str] = {}
    for site, units in by_site.items():
        free = [unit for unit in units if unit.given is None]
        placed = progress[site]
        for unit in units:
            if unit.given:
                placed[unit.given] += unit.size
                splits |= dict.fromkeys(unit.patients, unit.given)
        in_class = Counter(splits.values())
        count = sum(unit.size for unit in free)
        # Patients of the site in all classes so far, and of the class at all sites so far.
        reached = placed.total() + in_class.total() + 2 * count
        lacking = _site_numbers(
            count,
            room={name: totals[name] - have[name] for name in fractions},
            even={name: share * count for name, share in fractions.items()},
            behind={
                name: share * reached - placed[name] - in_class[name]
                for name, share in fractions.items()
            },
        )
        for unit in sorted(free, key=lambda unit: _order(seed, unit.first)):
            fitting = [name for name in reversed(lacking) if lacking[name] >= unit.size]
            split = fitting[0] if fitting else max(lacking, key=lacking.__getitem__)
            lacking[split] -= unit.size
            have[split] += unit.size
            placed[split] += unit.size
            splits |= dict.fromkeys(unit.patients, split)
    return splits


def _order(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()


def _totals(count: int, have: Counter[str], fractions: Mapping[str, float]) -> Counter[str]:
    """How many patients of a class each split will hold, those that it has included.

    Where given splits exceed their share, the splits that come first give way.
    """
    totals = have.copy()
    free = count - have.total()
    for name, share in reversed(_shares(count, fractions).items()):
        more = min(max(share - have[name], 0), free)
        totals[name] += more
        free -= more
    return totals


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
    count: int, *, room: dict[str, int], even: dict[str, float], behind: dict[str, float]
) -> dict[str, int]:
    """How many of a site's free patients of a class each split gets, one by one.

    First what is even of the site's part of the class, then one more for those furthest behind.

    Args:
      count: free patients.
      room: how many more of the class each split may get, at all sites together.
      even: the splits' exact parts of `count`.
      behind: how many patients each split is behind its part of the site in all classes so far,
        and behind its part of the class at all sites so far.
    """
    numbers = dict.fromkeys(room, 0)

    def claim(name: str) -> tuple[bool, bool, float]:
        more = numbers[name] + 1
        return more <= even[name] + 1e-9, more < even[name] + 1, behind[name] - numbers[name]

    for _ in range(count):
        split = max((name for name in room if numbers[name] < room[name]), key=claim)
        numbers[split] += 1
    return numbers
