"""From a plan to shards on disk, and to all that was found on the way.

In: a plan, a folder, and something that runs shard tasks (this process, a pool, a cluster). Out:
the shards of every split, the proof that the splits are disjoint, and the findings. Which scans
were exported twice is known only when all are read; then the few shards that this changes are
written again.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tfds_builder import splits
from tfds_builder.commandline.errors import UserError
from tfds_builder.shards.plan import Layout, Plan
from tfds_builder.shards.shard import Shard, ShardTask, write_shard
from tfds_builder.studies.duplicates import Copies, find_copies
from tfds_builder.studies.study import Announce, Facts, Study

WriteShard = Callable[[ShardTask, Announce], Shard]
RunTasks = Callable[[WriteShard, Sequence[ShardTask]], Iterable[Shard]]

CROWDED = "looks like too many others (lettering in the picture?): copies cannot be told"

_SHARED_NUMBER = (
    "a DICOM PatientID occurs under several patient_ids of the manifest: check that they differ"
)


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


@dataclass(frozen=True)
class Ingested:
    """A data set whose records are written.

    Attributes:
      plan: what was to be made.
      shards: split -> its shards that hold any record, in order.
      assigned: pseudonym -> split.
      duplicates: pairs of images that show one scan.
      crowded: image_ids of those that look like so many others that no copy can be told.
      rejected: (row, reason) of rows that cannot be used, by row.
      proof: what `splits.prove_disjoint` returned.
      fingerprint: see `Plan.fingerprint`.
    """

    plan: Plan
    shards: dict[str, tuple[Shard, ...]]
    assigned: dict[str, str]
    duplicates: tuple[Duplicate, ...]
    crowded: frozenset[str]
    rejected: tuple[tuple[int, str], ...]
    proof: splits.Proof
    fingerprint: str

    @property
    def images(self) -> list[Facts]:
        """Every image in a record."""
        return [facts for own in self.shards.values() for shard in own for facts in shard.images]

    @property
    def left_out(self) -> list[Facts]:
        """Images in no record: of unknown view, or without a certain opposite view."""
        return [facts for own in self.shards.values() for shard in own for facts in shard.left_out]

    @property
    def patients(self) -> dict[str, tuple[str, str]]:
        """splits.csv to be: pseudonym -> (label, split), patients of earlier builds included."""
        labels = self.plan.labels
        now = {patient: (label, self.assigned[patient]) for patient, label in labels.items()}
        return self.plan.known | now

    def notes(self) -> Counter[str]:
        """What was assumed, changed or found, and how often."""
        notes = Counter(note for facts in self.images for note in facts.notes)
        notes.update(_duplicate_notes(self.duplicates))
        if self.crowded:
            notes[CROWDED] = len(self.crowded)
        shared = _shared_numbers(self)
        if shared:
            notes[_SHARED_NUMBER] = shared
        return notes


def ingest(
    plan: Plan,
    folder: Path,
    version: str,
    run: RunTasks,
) -> Ingested:
    """Writes the shards of a data set.

    Args:
      plan: what is to be made.
      folder: where the shards are put, under names of their own; it exists.
      version: the data set's version.
      run: runs tasks and yields their results in order.

    Raises:
      UserError: the same scan stands in two given splits; the disk is full.
    """
    written: dict[tuple[str, ...], Shard] = {}
    assigned = plan.assign()
    _write_missing(plan, plan.lay_out(assigned), written, folder, run)
    images = _all_images(written.values())
    copies = find_copies([facts.signature for facts in images])
    duplicates = _duplicates(images, copies)
    _refuse_torn(plan, duplicates)
    again = plan.assign(_groups(duplicates))
    if again != assigned:
        assigned = again
        _write_missing(plan, plan.lay_out(assigned), written, folder, run)
    layout = plan.lay_out(assigned)
    used = {split: [written[_name(shard)] for shard in own] for split, own in layout.items()}
    final = [shard for own in used.values() for shard in own]
    digests = {row: pair for shard in final for row, pair in shard.digests.items()}
    rejected = {row: reason for shard in final for row, reason in shard.rejected}
    _remove_unused(written.values(), final)
    return Ingested(
        plan=plan,
        shards={split: tuple(s for s in own if s.records) for split, own in used.items()},
        assigned=assigned,
        duplicates=tuple(duplicates),
        crowded=frozenset(images[n].image_id for n in copies.crowded),
        rejected=tuple(sorted(rejected.items())),
        proof=splits.prove_disjoint(_memberships(used), plan.classes.names, tuple(layout)),
        fingerprint=plan.fingerprint(assigned, digests, version),
    )


def _name(studies: Iterable[Study]) -> tuple[str, ...]:
    return tuple(study.study_key for study in studies)


def _write_missing(
    plan: Plan,
    layout: Layout,
    written: dict[tuple[str, ...], Shard],
    folder: Path,
    run: RunTasks,
) -> None:
    missing = [s for own in layout.values() for s in own if _name(s) not in written]
    tasks = [
        ShardTask(
            studies=studies,
            path=str(folder / f"{len(written) + n}.array_record"),
            config=plan.options.config,
            classes=plan.classes,
            keep_one_view=plan.options.keep_one_view,
        )
        for n, studies in enumerate(missing)
    ]
    for task, shard in zip(tasks, run(write_shard, tasks), strict=True):
        written[_name(task.studies)] = shard


def _all_images(shards: Iterable[Shard]) -> list[Facts]:
    """Of all images, also those in no record: a scan left out here is in a record elsewhere."""
    images = [facts for shard in shards for facts in (*shard.images, *shard.left_out)]
    return sorted(images, key=lambda facts: facts.image_id)


def _duplicates(images: Sequence[Facts], copies: Copies) -> list[Duplicate]:
    return [
        Duplicate(
            first=images[a],
            second=images[b],
            exact=not mirrored and _statistics(images[a]) == _statistics(images[b]),
            mirrored=mirrored,
        )
        for a, b, mirrored in copies.pairs
    ]


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


def _groups(duplicates: Iterable[Duplicate]) -> list[tuple[str, ...]]:
    """Patients who share a scan, directly or through others, in a fixed order."""
    parents: dict[str, str] = {}

    def root(patient: str) -> str:
        while parents.setdefault(patient, patient) != patient:
            parents[patient] = parents[parents[patient]]
            patient = parents[patient]
        return patient

    for pair in duplicates:
        one, other = sorted((root(pair.first.patient_key), root(pair.second.patient_key)))
        parents[other] = one
    groups = defaultdict(list)
    for patient in sorted(parents):
        groups[root(patient)].append(patient)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _remove_unused(written: Iterable[Shard], used: list[Shard]) -> None:
    kept = {shard.path for shard in used if shard.records}
    for shard in written:
        if shard.path not in kept:
            Path(shard.path).unlink(missing_ok=True)


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
        yield f"{duplicate_kind(pair)} of another image under {under}"
        if pair.first.label != pair.second.label:
            yield "the same scan under two labels"


def duplicate_kind(pair: Duplicate) -> str:
    """'exact copy', 'mirrored copy' or 'near copy'."""
    return "mirrored copy" if pair.mirrored else "exact copy" if pair.exact else "near copy"


def _shared_numbers(ingested: Ingested) -> int:
    """A hospital number under several manifest patients would put one person into two splits."""
    owners: dict[bytes, set[str]] = defaultdict(set)
    for facts in ingested.images:
        if facts.patient_digest:
            owners[facts.patient_digest].add(facts.patient_key)
    return sum(len(patients) > 1 for patients in owners.values())
