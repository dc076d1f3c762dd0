"""Decides what goes where before any file is read: studies, the split of every patient, shards.

In: the manifest's rows, the pseudonym key, the splits known so far. Out: studies under pseudonyms,
divided by patient, and shards that depend on nothing but the studies in them.
"""

import hashlib
import secrets
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from tfds_builder import splits
from tfds_builder.classes import Classes, classes_of
from tfds_builder.commandline.errors import UserError
from tfds_builder.manifest import Row, number_of
from tfds_builder.shards.records import STUDIES_CONFIG, VERSION, VIEWS_CONFIG
from tfds_builder.studies import deidentify
from tfds_builder.studies.study import Study

ROWS_PER_SHARD = 64

_MOST_DIGITS = 24


@dataclass(frozen=True)
class Options:
    """How a data set is to be made.

    Attributes:
      config: 'views' or 'studies'.
      keep_one_view: see `records.records_of`.
      fractions: split -> its share of the patients; the names are the splits.
      seed: another seed, another division.
      max_rejected: the largest share of rows that may be unusable.
      strict: whether findings of the quality checks are errors.
      classes: the classes, least severe first; None where they are what the manifest uses.
    """

    config: str = VIEWS_CONFIG
    keep_one_view: bool = False
    fractions: Mapping[str, float] = field(default_factory=splits.shares_of)
    seed: int = 0
    max_rejected: float = 0.05
    strict: bool = False
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Plan:
    """A data set to be.

    Attributes:
      manifest: path of manifest.csv, for messages.
      rows: what it says; a patient whom an earlier build knew has the patient_id of then.
      recognised: rows whose patient_id differs from that.
      studies: in the order of their study_key.
      classes: the classes of the data set.
      labels: pseudonym -> the label under which a patient is stratified.
      sites: pseudonym -> site pseudonym of patients whose site is named.
      known: splits of earlier builds: pseudonym -> (label, split).
      fixed: pseudonym -> split where the manifest or an earlier build gives it.
      options: how it is to be made.
    """

    manifest: Path
    rows: tuple[Row, ...]
    studies: tuple[Study, ...]
    classes: Classes
    labels: dict[str, str]
    sites: dict[str, str]
    known: dict[str, tuple[str, str]]
    fixed: dict[str, str]
    options: Options
    recognised: tuple[int, ...] = ()

    def assign(self, groups: Iterable[Collection[str]] = ()) -> dict[str, str]:
        """Gives every patient a split; patients of a group get the same one.

        Raises UserError on a group whose patients are fixed in different splits.
        """
        try:
            return splits.assign_splits(
                self.labels,
                self.fixed,
                classes=self.classes,
                fractions=self.options.fractions,
                seed=self.options.seed,
                sites=self.sites,
                groups=groups,
            )
        except splits.TornGroup as torn:
            one, other = (self._first_row(patient) for patient in torn.args)
            split, second = (self.fixed[patient] for patient in torn.args)
            raise UserError(
                f"{self.manifest}: rows {one} and {other}: their patients share a scan or a DICOM "
                f"PatientID, perhaps through others, but are in '{split}' and '{second}'; "
                f"give both one split (manifest, or {splits.FILE_NAME}) or one "
                "patient_id, or remove a row"
            ) from None

    def _first_row(self, patient: str) -> int:
        own = [study.rows for study in self.studies if study.patient_key == patient]
        return min(row.number for rows in own for row in rows)

    def lay_out(self, assigned: Mapping[str, str]) -> dict[str, tuple[tuple[Study, ...], ...]]:
        """Divides the studies into splits and shards.

        A shard holds a range of study keys, which are as good as random: where a study moves, one
        shard of either split changes, and the rest stays as it was.
        """
        return {
            split: _shards(
                [study for study in self.studies if assigned[study.patient_key] == split]
            )
            for split in self.options.fractions
        }

    def fingerprint(
        self, assigned: Mapping[str, str], digests: Mapping[int, tuple[bytes, bytes]]
    ) -> str:
        """SHA-256 of what decides the records: files, rows, classes, splits, options, version.

        What the machine can decode is no part of it: a file that was rejected for want of a codec
        leaves the same fingerprint as with the codec.
        """
        classes = f"{','.join(self.classes.names)} {','.join(self.classes.severity)}"
        head = f"{VERSION} {self.options.config} {self.options.keep_one_view} {classes}"
        lines = sorted(
            " ".join(
                [
                    *(digest.hex() or "-" for digest in digests[row.number]),
                    study.patient_key,
                    study.study_key,
                    study.site_key or "-",
                    assigned[study.patient_key],
                    f"{row.label} {row.view} {row.frame} {row.sex} {row.age} {row.accept}",
                ]
            )
            for study in self.studies
            for row in study.rows
        )
        return hashlib.sha256("\n".join([head, *lines]).encode()).hexdigest()


def plan_data_set(
    manifest: Path,
    rows: tuple[Row, ...],
    key: bytes,
    known: dict[str, tuple[str, str]],
    options: Options,
    numbers: Mapping[int, str] | None = None,
) -> Plan:
    """Names patients and studies, and finds which splits are given.

    Args:
      manifest, rows, known, options: as in `Plan`.
      key: the pseudonym key.
      numbers: row -> PatientID of its file, of the rows that `rows_to_ask` names.

    Raises:
      UserError: a fault in the given splits; a study of several labels that nothing ranks.
    """

    def is_known(patient_id: str) -> bool:
        return deidentify.pseudonym(key, patient_id) in known

    meant = _earlier_ids(manifest, rows, is_known, numbers or {})
    recognised = tuple(row.number for row in rows if row.patient_id in meant)
    rows = tuple(replace(row, patient_id=meant.get(row.patient_id, row.patient_id)) for row in rows)
    classes = classes_of((row.label for row in rows), options.classes)
    studies = _studies(rows, key)
    by_patient: dict[str, list[Row]] = defaultdict(list)
    for study in studies:
        by_patient[study.patient_key] += study.rows
    named = {p: [row.site for row in own if row.site] for p, own in by_patient.items()}
    if options.config == STUDIES_CONFIG:
        _refuse_unranked(manifest, studies, classes)
    return Plan(
        manifest=manifest,
        rows=rows,
        studies=studies,
        classes=classes,
        labels={
            patient: classes.stratum(row.label for row in own)
            for patient, own in by_patient.items()
        },
        # The one named most often; of equals, the first by name.
        sites={
            patient: _site_key(key, max(sorted(set(own)), key=own.count))
            for patient, own in named.items()
            if own
        },
        known=known,
        fixed=_fixed_splits(manifest, rows, key, known, tuple(options.fractions)),
        options=options,
        recognised=recognised,
    )


def rows_to_ask(
    rows: Sequence[Row], key: bytes, known: Mapping[str, tuple[str, str]]
) -> tuple[Row, ...]:
    """Rows of new patients, where patients of earlier builds are missing: are they the same?"""
    pseudonyms = {row.patient_id: deidentify.pseudonym(key, row.patient_id) for row in rows}
    if known.keys() <= set(pseudonyms.values()):
        return ()
    return tuple(row for row in rows if pseudonyms[row.patient_id] not in known)


def _earlier_ids(
    manifest: Path,
    rows: tuple[Row, ...],
    is_known: Callable[[str], bool],
    numbers: Mapping[int, str],
) -> dict[str, str]:
    """patient_id -> that of an earlier build, of those that have changed since.

    Only pseudonyms are known of earlier builds. So a number is looked for with any zeros before it,
    and any other patient_id by the PatientID of its files, where no other patient has the same.
    """
    meant = _by_zeros(manifest, rows, is_known)
    present = {meant.get(row.patient_id, row.patient_id) for row in rows}
    own: dict[str, set[str]] = {}
    owners: dict[str, set[str]] = {}
    for row in rows:
        number = numbers.get(row.number, "")
        own.setdefault(row.patient_id, set()).add(number)
        owners.setdefault(number, set()).add(row.patient_id)
    for patient, found in own.items():
        number = min(found)
        alone = number and len(found) == 1 and owners[number] == {patient}
        if alone and number not in present and is_known(number) and patient not in meant:
            meant[patient] = number
    return meant


def _by_zeros(
    manifest: Path, rows: tuple[Row, ...], is_known: Callable[[str], bool]
) -> dict[str, str]:
    """The same, of numbers that differ in the zeros before them."""
    meant: dict[str, str] = {}
    for patient in sorted({row.patient_id for row in rows}):
        number = number_of(patient)
        if not number or is_known(patient):
            continue
        spelled = [number.zfill(digits) for digits in range(len(number), _MOST_DIGITS + 1)]
        spelled += [f"{one}.0" for one in spelled]
        found = [one for one in spelled if is_known(one)]
        if len(found) > 1:
            row = next(row for row in rows if row.patient_id == patient)
            raise UserError(
                f"{manifest}: row {row.number}: patient_id may be any of {len(found)} patients of "
                "earlier builds, who differ in the zeros before their number; write those zeros"
            )
        if found:
            meant[patient] = found[0]
    return meant


def _studies(rows: Iterable[Row], key: bytes) -> tuple[Study, ...]:
    def name(row: Row) -> tuple[str, str]:
        return row.patient_id, row.study_id or row.relative_path

    in_order = sorted(rows, key=lambda row: (*name(row), row.relative_path, row.frame or 0))
    salt = secrets.token_bytes(16)
    studies = []
    for (patient, study), group in groupby(in_order, key=name):
        own = tuple(group)
        site = next((row.site for row in own if row.site), None)
        studies.append(
            Study(
                study_key=deidentify.pseudonym(key, patient, study),
                patient_key=deidentify.pseudonym(key, patient),
                site_key=_site_key(key, site) if site else "",
                rows=own,
                salt=salt,
            )
        )
    return tuple(sorted(studies, key=lambda study: study.study_key))


def _site_key(key: bytes, site: str) -> str:
    return deidentify.pseudonym(key, "", "site", site)


def _refuse_unranked(manifest: Path, studies: Iterable[Study], classes: Classes) -> None:
    for study in studies:
        if classes.most_serious([row.label for row in study.rows]) is None:
            first = study.rows[0]
            other = next(row for row in study.rows if row.label != first.label)
            one, two = sorted((first, other), key=lambda row: row.number)
            raise UserError(
                f"{manifest}: rows {one.number} and {two.number}: one study has the labels "
                f"'{one.label}' and '{two.label}', and which is the more serious is not known; "
                f"list the classes, least severe first: --classes {','.join(classes.names)}"
            )


def _fixed_splits(
    manifest: Path,
    rows: Iterable[Row],
    key: bytes,
    known: Mapping[str, tuple[str, str]],
    names: tuple[str, ...],
) -> dict[str, str]:
    fixed = {patient: split for patient, (_, split) in known.items()}
    for row in rows:
        if row.split is None:
            continue
        patient = deidentify.pseudonym(key, row.patient_id)
        if row.split not in names:
            raise UserError(
                f"{manifest}: row {row.number}: split '{row.split}', but the data set is to "
                f"have {', '.join(names)}; see --folds"
            )
        if patient in known and known[patient][1] != row.split:
            raise UserError(
                f"{manifest}: row {row.number}: split '{row.split}', but an earlier build put "
                f"this patient into '{known[patient][1]}' ({splits.FILE_NAME}); change the "
                "manifest, or remove that file to divide all patients anew"
            )
        fixed[patient] = row.split
    return fixed


def _shards(studies: Sequence[Study]) -> tuple[tuple[Study, ...], ...]:
    count = max(1, round(sum(len(study.rows) for study in studies) / ROWS_PER_SHARD))

    def shard_of(study: Study) -> int:
        return int(study.study_key, 16) * count >> 4 * len(study.study_key)

    return tuple(tuple(own) for _, own in groupby(studies, key=shard_of))
