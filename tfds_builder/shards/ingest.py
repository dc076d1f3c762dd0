"""From a plan to shards that are written, and to all that was found on the way.

In: a plan, a folder, and what writes shards there. Out: the shards, the scans that were exported
twice, the proof that the splits are disjoint, and the findings. Which scans were exported twice is
known only when all are read; then the few shards that this changes are written again.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfds_builder import splits
from tfds_builder.commandline.errors import UserError
from tfds_builder.shards.plan import Plan
from tfds_builder.shards.proof import prove_disjoint
from tfds_builder.shards.shard import Shard, ShardTask
from tfds_builder.studies.duplicates import find_copies
from tfds_builder.studies.study import Facts, Study

CROWDED = "looks like too many others (lettering in the picture?): copies cannot be told"
SHARED_NUMBER = "its DICOM PatientID stands under another patient_id too (kept in one split)"
PLACEHOLDER = "its DICOM PatientID stands under many patient_ids (a placeholder?)"
TWO_LABELS = "the same scan under two labels"

# A person may be registered this often, or be a patient anew with each study.
_MOST_REGISTRATIONS = 8


@dataclass(frozen=True)
class Duplicate:
    """Two images that show the same scan.

    Attributes:
      first, second: the images, in the order of their image_id.
      kind: 'exact copy', pixel for pixel as far as statistics tell, 'mirrored copy' or 'near copy'.
    """

    first: Facts
    second: Facts
    kind: str


@dataclass(frozen=True)
class Duplicates:
    """The scans that were exported more than once, and the people who are there more than once.

    Attributes:
      pairs: of images that show the same scan.
      crowded: image_ids of those that look like so many others that no copy can be told.
      shared: PatientID (its digest) -> the several patients under whom it stands.
    """

    pairs: tuple[Duplicate, ...]
    crowded: frozenset[str]
    shared: dict[bytes, frozenset[str]]

    def groups(self) -> Sequence[Collection[str]]:
        """The patients who may be one and the same: of each pair, and of each shared PatientID."""
        groups = [{pair.first.patient_key, pair.second.patient_key} for pair in self.pairs]
        return groups + [own for own in self.shared.values() if len(own) <= _MOST_REGISTRATIONS]

    def of_number(self, facts: Facts) -> str:
        """The finding of an image whose PatientID is shared; else empty."""
        patients = self.shared.get(facts.patient_digest, ())
        if len(patients) > _MOST_REGISTRATIONS:
            return PLACEHOLDER
        return SHARED_NUMBER if patients else ""


@dataclass(frozen=True)
class Ingested:
    """A data set whose records are written.

    Attributes:
      plan: what was to be made.
      shards: split -> its shards that hold any record, in order.
      left_out: images in no record: of unknown view, or without a certain opposite view.
      assigned: pseudonym -> split.
      duplicates: what is there more than once.
      rejected: (row, reason) of rows that cannot be used, by row.
      proof: what `prove_disjoint` returned.
      fingerprint: see `Plan.fingerprint`.
    """

    plan: Plan
    shards: dict[str, tuple[Shard, ...]]
    left_out: tuple[Facts, ...]
    assigned: dict[str, str]
    duplicates: Duplicates
    rejected: tuple[tuple[int, str], ...]
    proof: dict[str, dict[str, dict[str, Any]]]
    fingerprint: str

    @property
    def images(self) -> list[Facts]:
        """Every image in a record."""
        return [facts for own in self.shards.values() for shard in own for facts in shard.images]

    @property
    def patients(self) -> dict[str, tuple[str, str]]:
        """splits.csv to be: pseudonym -> (label, split), patients of earlier builds included."""
        labels = self.plan.labels
        now = {patient: (label, self.assigned[patient]) for patient, label in labels.items()}
        return self.plan.known | now

    def notes(self) -> Iterator[str]:
        """What was assumed, changed or found, as often as it was."""
        for facts in self.images:
            yield from (*facts.notes, *filter(None, [self.duplicates.of_number(facts)]))
        for pair in self.duplicates.pairs:
            alone = pair.first.patient_key == pair.second.patient_key
            under = "one patient" if alone else "two patients, kept in one split"
            yield f"{pair.kind} of another image under {under}"
            if pair.first.label != pair.second.label:
                yield TWO_LABELS
        yield from [CROWDED] * len(self.duplicates.crowded)


def ingest(
    plan: Plan, folder: Path, write: Callable[[Sequence[ShardTask]], Iterable[Shard]]
) -> Ingested:
    """Writes all shards, then again those that change because patients share a scan.

    Args:
      plan: what to make.
      folder: where the shards go; it exists.
      write: writes shards, and returns what became of each, in order.

    Raises:
      UserError: the same scan, or one PatientID, stands in two given splits.
    """
    written: dict[tuple[str, ...], Shard] = {}

    def write_missing(assigned: Mapping[str, str]) -> None:
        layout = plan.lay_out(assigned)
        missing = [s for own in layout.values() for s in own if _name(s) not in written]
        tasks = [
            ShardTask(studies, str(folder / f"{n}.array_record"), plan.options, plan.classes)
            for n, studies in enumerate(missing, len(written))
        ]
        if tasks:
            written.update(zip(map(_name, missing), write(tasks), strict=True))

    write_missing(plan.assign())
    duplicates = _find_duplicates(plan, written.values())
    assigned = plan.assign(duplicates.groups())
    write_missing(assigned)
    used = {
        split: [written[_name(studies)] for studies in own]
        for split, own in plan.lay_out(assigned).items()
    }
    shards = [shard for own in used.values() for shard in own]
    images = {split: [facts for s in own for facts in s.images] for split, own in used.items()}
    digests = {row: pair for shard in shards for row, pair in shard.digests.items()}
    return Ingested(
        plan=plan,
        shards={split: tuple(s for s in own if s.records) for split, own in used.items()},
        left_out=tuple(facts for shard in shards for facts in shard.left_out),
        assigned=assigned,
        duplicates=duplicates,
        rejected=tuple(sorted(row for shard in shards for row in shard.rejected)),
        proof=prove_disjoint(images, plan.classes.names),
        fingerprint=plan.fingerprint(assigned, digests),
    )


def _find_duplicates(plan: Plan, written: Iterable[Shard]) -> Duplicates:
    """Compares all images, also those in no record: a scan left out here is in one elsewhere."""
    images = [facts for shard in written for facts in (*shard.images, *shard.left_out)]
    images.sort(key=lambda facts: facts.image_id)
    copies = find_copies([facts.signature for facts in images])
    pairs = []
    for a, b, mirrored in copies.pairs:
        exact = _statistics(images[a]) == _statistics(images[b])
        kind = "mirrored copy" if mirrored else "exact copy" if exact else "near copy"
        pairs.append(Duplicate(images[a], images[b], kind))
    _refuse_torn(plan, pairs)
    crowded = frozenset(images[n].image_id for n in copies.crowded)
    return Duplicates(tuple(pairs), crowded, _shared_numbers(images))


def _name(studies: Iterable[Study]) -> tuple[str, ...]:
    return tuple(study.study_key for study in studies)


def _statistics(facts: Facts) -> tuple[bytes, int, str, float]:
    quality = facts.quality
    return facts.signature, quality.total, repr(quality.dispersion), facts.scale


def _refuse_torn(plan: Plan, duplicates: Iterable[Duplicate]) -> None:
    for pair in duplicates:
        given = [plan.fixed.get(facts.patient_key) for facts in (pair.first, pair.second)]
        if None not in given and given[0] != given[1]:
            raise UserError(
                f"{plan.manifest}: rows {pair.first.row} and {pair.second.row} hold the same scan, "
                f"exported twice, but their patients are in '{given[0]}' and '{given[1]}'; give "
                f"both patients one split (manifest, or {splits.FILE_NAME}), or remove a row"
            )


def _shared_numbers(images: Iterable[Facts]) -> dict[bytes, frozenset[str]]:
    """A hospital number under several manifest patients would put one person into two splits."""
    owners: dict[bytes, set[str]] = defaultdict(set)
    for facts in images:
        if facts.patient_digest:
            owners[facts.patient_digest].add(facts.patient_key)
    return {digest: frozenset(own) for digest, own in owners.items() if len(own) > 1}
