"""Decides what a data set will hold before any pixel is decoded.

In: a manifest, the pseudonym key, the splits known so far. Out: every image with its identifiers
and split, divided into shards, with the fingerprint of the sources and the proof of disjointness.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from tfds_builder import deidentify, dicom, splits
from tfds_builder.errors import DataError
from tfds_builder.lesion_mask import check_masks
from tfds_builder.manifest import SPLITS, Row

SOURCES_PER_SHARD = 64

MapAll = Callable[[Callable[[Any], Any], list[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class Image:
    """One image to be: its frame in the source file and all of its record but pixels."""

    frame: int
    image_id: str
    patient_key: str
    study_key: str
    label: str
    view: str
    sex: str
    age_band: str
    manufacturer: str


@dataclass(frozen=True)
class Source:
    """One manifest row to be decoded, and the images that come of it, by image_id."""

    row: Row
    frames: int
    matrix: tuple[int, int]
    images: tuple[Image, ...]


@dataclass(frozen=True)
class Plan:
    """A whole data set to be.

    Attributes:
      shards: split -> its shards, each a tuple of sources in the order of their images.
      fingerprint: sha256 of all that decides the records.
      proof: what `splits.prove_disjoint` returned.
      patients: splits.csv to be: pseudonym -> (label, split), patients of earlier builds included.
      earlier_patients: how many patients earlier builds knew.
      kept_patients: how many of them are here, in the same split.
      notes: what was found in the headers, without anything of the patients, and how often.
    """

    shards: dict[str, tuple[tuple[Source, ...], ...]]
    fingerprint: str
    proof: dict[str, Any]
    patients: dict[str, tuple[str, str]]
    earlier_patients: int
    kept_patients: int
    notes: Counter[str]

    @property
    def images(self) -> int:
        """How many images there will be."""
        return sum(
            len(source.images)
            for shards in self.shards.values()
            for shard in shards
            for source in shard
        )


@dataclass(frozen=True)
class _Inspected:
    header: dicom.Header
    digest: str
    mask_digest: str


def plan_data_set(
    manifest: Path,
    rows: tuple[Row, ...],
    key: bytes,
    known: dict[str, tuple[str, str]],
    version: str,
    fractions: tuple[float, float, float] = splits.FRACTIONS,
    seed: int = 0,
    map_all: MapAll = lambda function, items, _: map(function, items),
) -> Plan:
    """Reads every header and lays out the data set.

    Args:
      manifest: path of manifest.csv, for messages.
      rows: what it says.
      key: the pseudonym key.
      known: splits of earlier builds, as `splits.read_splits` returns them.
      version: the data set's version, part of the fingerprint.
      fractions, seed: as for `splits.assign_splits`.
      map_all: applies a function to all items in order; a process pool's, where there is one. The
        third argument says what is being done.

    Raises:
      DataError: a fault in a file's header or in the given splits.
    """
    inspected = list(map_all(inspect_row, list(rows), "reading headers"))
    _refuse_copies(manifest, rows, inspected)
    patients = {row.patient_id: deidentify.patient_pseudonym(key, row.patient_id) for row in rows}
    labels = {
        patients[patient]: splits.patient_label(label for _, label in pairs)
        for patient, pairs in groupby(
            sorted((row.patient_id, row.label) for row in rows), key=lambda pair: pair[0]
        )
    }
    fixed = _fixed_splits(manifest, rows, patients, known)
    assigned = splits.assign_splits(
        labels, fixed, fractions=splits.shares_of(None, fractions), seed=seed
    )
    sources = _sources(rows, inspected, patients, key)
    shards = {split: _shards(sources, split, assigned) for split in SPLITS}
    return Plan(
        shards=shards,
        fingerprint=_fingerprint(sources, inspected, assigned, version),
        proof=splits.prove_disjoint(_memberships(shards)),
        patients=known | {patient: (labels[patient], assigned[patient]) for patient in labels},
        earlier_patients=len(known),
        kept_patients=sum(patient in known for patient in labels),
        notes=_notes(rows, inspected),
    )


def inspect_row(row: Row) -> _Inspected:
    """Checks one row's files as far as their headers go, and hashes them."""
    mask_digest = ""
    try:
        header = dicom.read_header(row.path, row.frame, row.view)
        if row.lesion_mask:
            check_masks(row.lesion_mask, header.frames, header.fit.rows, header.fit.columns)
            mask_digest = _digest(row.lesion_mask)
    except DataError as error:
        raise DataError(f"manifest row {row.number}: {error}") from error
    return _Inspected(header, _digest(row.path), mask_digest)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_copies(manifest: Path, rows: tuple[Row, ...], inspected: list[_Inspected]) -> None:
    """The same file under two names would be counted twice, and may stand in two splits."""
    first: dict[str, Row] = {}
    for row, found in zip(rows, inspected, strict=True):
        other = first.setdefault(found.digest, row)
        if other.path != row.path:
            raise DataError(
                f"{manifest}: row {row.number}: path '{row.relative_path}' is a copy of "
                f"'{other.relative_path}' in row {other.number}; remove one of the two"
            )


def _fixed_splits(
    manifest: Path,
    rows: tuple[Row, ...],
    patients: dict[str, str],
    known: dict[str, tuple[str, str]],
) -> dict[str, str]:
    fixed = {patient: split for patient, (_, split) in known.items()}
    for row in rows:
        patient = patients[row.patient_id]
        if row.split is None:
            continue
        if patient in known and known[patient][1] != row.split:
            raise DataError(
                f"{manifest}: row {row.number}: split '{row.split}', but an earlier build put this "
                f"patient into '{known[patient][1]}' ({splits.FILE_NAME}); change the manifest, or "
                "remove that file to divide all patients anew"
            )
        fixed[patient] = row.split
    return fixed


def _sources(
    rows: tuple[Row, ...], inspected: list[_Inspected], patients: dict[str, str], key: bytes
) -> list[Source]:
    """The rows as sources in the manifest's order, each image with an identifier of its own."""
    sources = [
        _source(row, found.header, patients[row.patient_id], key)
        for row, found in zip(rows, inspected, strict=True)
    ]
    in_order = sorted(range(len(rows)), key=lambda n: (rows[n].relative_path, rows[n].frame or 0))
    used: Counter[str] = Counter()
    for n in in_order:
        names = [image.image_id for image in sources[n].images]
        used.update(names)
        nth = max(used[name] for name in names)
        if nth > 1:
            sources[n] = _numbered(sources[n], nth)
    return sources


def _numbered(source: Source, nth: int) -> Source:
    """The nth scan of a study: <study_key>-2-anterior."""
    images = tuple(
        replace(image, image_id=f"{image.study_key}-{nth}-{image.view}") for image in source.images
    )
    return replace(source, images=images)


def _source(row: Row, header: dicom.Header, patient_key: str, key: bytes) -> Source:
    study = row.study_id or row.relative_path
    study_key = deidentify.study_pseudonym(key, row.patient_id, study)
    images = tuple(
        Image(
            frame=view.frame,
            image_id=f"{study_key}-{view.name}",
            patient_key=patient_key,
            study_key=study_key,
            label=row.label,
            view=view.name,
            sex=row.sex or header.sex or deidentify.UNKNOWN,
            age_band=deidentify.age_band(header.age if row.age is None else row.age),
            manufacturer=deidentify.manufacturer(header.manufacturer),
        )
        for view in sorted(header.views, key=lambda view: view.name)
    )
    return Source(row, header.frames, (header.fit.rows, header.fit.columns), images)


def _shards(
    sources: list[Source], split: str, assigned: dict[str, str]
) -> tuple[tuple[Source, ...], ...]:
    own = sorted(
        (source for source in sources if assigned[source.images[0].patient_key] == split),
        key=lambda source: [image.image_id for image in source.images],
    )
    starts = range(0, len(own), SOURCES_PER_SHARD)
    return tuple(tuple(own[start : start + SOURCES_PER_SHARD]) for start in starts)


def _memberships(
    shards: dict[str, tuple[tuple[Source, ...], ...]],
) -> Iterable[splits.Membership]:
    for split, own in shards.items():
        for shard in own:
            for source in shard:
                for image in source.images:
                    yield splits.Membership(
                        image.image_id, image.study_key, image.patient_key, image.label, split
                    )


def _fingerprint(
    sources: list[Source], inspected: list[_Inspected], assigned: dict[str, str], version: str
) -> str:
    lines = sorted(
        f"{found.digest} {found.mask_digest} {assigned[image.patient_key]} {image}"
        for source, found in zip(sources, inspected, strict=True)
        for image in source.images
    )
    return hashlib.sha256("\n".join([version, *lines]).encode()).hexdigest()


def _notes(rows: tuple[Row, ...], inspected: list[_Inspected]) -> Counter[str]:
    """A hospital number under several manifest patients would put one person into two splits."""
    owners: dict[str, set[str]] = defaultdict(set)
    for row, found in zip(rows, inspected, strict=True):
        if found.header.patient_id:
            owners[found.header.patient_id].add(row.patient_id)
    shared = sum(len(names) > 1 for names in owners.values())
    text = (
        "a DICOM PatientID occurs under several patient_ids of the manifest: check that they differ"
    )
    return Counter({text: shared} if shared else {})
