"""From written shards to the data set that they make, and to all that was found on the way.

In: a plan, and its shards as they are written. Out: the shards that are still missing, the scans
that were exported twice, the proof that the splits are disjoint, and the findings. Which scans were
exported twice is known only when all are read; then the few shards that this changes are written
again.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tfds_builder import splits
from tfds_builder.commandline.errors import UserError
from tfds_builder.shards.plan import Plan
from tfds_builder.shards.shard import Shard, ShardTask
from tfds_builder.studies.duplicates import find_copies
from tfds_builder.studies.study import Facts, Study

CROWDED = "looks like too many others (lettering in the picture?): copies cannot be told"
SHARED_NUMBER = "its DICOM PatientID stands under another patient_id too (kept in one split)"
PLACEHOLDER = "its DICOM PatientID stands under many patient_ids (a placeholder?)"

# A person may be registered this often, or be a patient anew with each study.
_MOST_REGISTRATIONS = 8


@dataclass(frozen=True)
class Duplicate:
    """Two images that show the same scan.

    Attributes:
      first, second: the images, in the order of their image_id.
      exact: whether they are the same pixel for pixel, as far as their statistics tell.
      mirrored: whether one is the other's mirror image.
    """

    first: Facts
    second: Facts
    exact: bool
    mirrored: bool

    @property
    def kind(self) -> str:
        """'exact copy', 'mirrored copy' or 'near copy'."""
        return "mirrored copy" if self.mirrored else "exact copy" if self.exact else "near copy"


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
      proof: what `splits.prove_disjoint` returned.
      fingerprint: see `Plan.fingerprint`.
    """

    plan: Plan
    shards: dict[str, tuple[Shard, ...]]
    left_out: tuple[Facts, ...]
    assigned: dict[str, str]
    duplicates: Duplicates
    rejected: tuple[tuple[int, str], ...]
    proof: splits.Proof
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

    def notes(self) -> Counter[str]:
        """What was assumed, changed or found, and how often."""
        notes = Counter(note for facts in self.images for note in facts.notes)
        notes.update(_duplicate_notes(self.duplicates.pairs))
        if self.duplicates.crowded:
            notes[CROWDED] = len(self.duplicates.crowded)
        notes.update(filter(None, map(self.duplicates.of_number, self.images)))
        return notes


class ShardStore:
    """The shards of a planned data set, as many as are written, in a folder that exists."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan, self._folder = plan, folder
        self._written: dict[tuple[str, ...], Shard] = {}

    def missing(self, assigned: Mapping[str, str]) -> list[ShardTask]:
        """The shards that a division (pseudonym -> split) needs and that are not written."""
        layout = self._plan.lay_out(assigned)
        missing = [s for own in layout.values() for s in own if _name(s) not in self._written]
        return [
            ShardTask(
                studies=studies,
                path=str(self._folder / f"{len(self._written) + n}.array_record"),
                config=self._plan.options.config,
                classes=self._plan.classes,
                keep_one_view=self._plan.options.keep_one_view,
            )
            for n, studies in enumerate(missing)
        ]

    def add(self, tasks: Sequence[ShardTask], shards: Iterable[Shard]) -> None:
        """Takes what became of each task, in order."""
        for task, shard in zip(tasks, shards, strict=True):
            self._written[_name(task.studies)] = shard

    def find_duplicates(self) -> Duplicates:
        """Compares all images, also those in no record: a scan left out here is in one elsewhere.

        Raises UserError where the same scan stands in two given splits.
        """
        written = self._written.values()
        images = [facts for shard in written for facts in (*shard.images, *shard.left_out)]
        images.sort(key=lambda facts: facts.image_id)
        copies = find_copies([facts.signature for facts in images])
        pairs = tuple(
            Duplicate(
                first=images[a],
                second=images[b],
                exact=not mirrored and _statistics(images[a]) == _statistics(images[b]),
                mirrored=mirrored,
            )
            for a, b, mirrored in copies.pairs
        )
        _refuse_torn(self._plan, pairs)
        crowded = frozenset(images[n].image_id for n in copies.crowded)
        return Duplicates(pairs, crowded, _shared_numbers(images))

    def ingested(self, assigned: dict[str, str], duplicates: Duplicates, version: str) -> Ingested:
        """The data set of a division (pseudonym -> split) whose shards are all written."""
        plan, layout = self._plan, self._plan.lay_out(assigned)
        used = {
            split: [self._written[_name(studies)] for studies in own]
            for split, own in layout.items()
        }
        shards = [shard for own in used.values() for shard in own]
        digests = {row: pair for shard in shards for row, pair in shard.digests.items()}
        rejected = {row: reason for shard in shards for row, reason in shard.rejected}
        return Ingested(
            plan=plan,
            shards={split: tuple(s for s in own if s.records) for split, own in used.items()},
            left_out=tuple(facts for shard in shards for facts in shard.left_out),
            assigned=assigned,
            duplicates=duplicates,
            rejected=tuple(sorted(rejected.items())),
            proof=splits.prove_disjoint(_memberships(used), plan.classes.names, tuple(layout)),
            fingerprint=plan.fingerprint(assigned, digests, version),
        )


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


def _memberships(used: dict[str, list[Shard]]) -> Iterator[splits.Membership]:
    for split, shards in used.items():
        for shard in shards:
            for facts in shard.images:
                yield splits.Membership(
                    facts.image_id,
                    facts.study_key,
                    facts.patient_key,
                    facts.label,
                    split,
                    facts.site_key,
                )


def _duplicate_notes(duplicates: Iterable[Duplicate]) -> Iterator[str]:
    for pair in duplicates:
        under = (
            "one patient"
            if pair.first.patient_key == pair.second.patient_key
            else "two patients, kept in one split"
        )
        yield f"{pair.kind} of another image under {under}"
        if pair.first.label != pair.second.label:
            yield "the same scan under two labels"


def _shared_numbers(images: Iterable[Facts]) -> dict[bytes, frozenset[str]]:
    """A hospital number under several manifest patients would put one person into two splits."""
    owners: dict[bytes, set[str]] = defaultdict(set)
    for facts in images:
        if facts.patient_digest:
            owners[facts.patient_digest].add(facts.patient_key)
    return {digest: frozenset(own) for digest, own in owners.items() if len(own) > 1}
