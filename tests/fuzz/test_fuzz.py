import hashlib
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from tests.fuzz import trial
from tests.fuzz.__main__ import main
from tests.fuzz.damage_bytes import BYTE_DAMAGE
from tests.fuzz.damage_dicom import DICOM_DAMAGE, ROWS
from tests.fuzz.damage_pictures import PICTURE_DAMAGE
from tests.fuzz.draft import PIXEL_DATA, TRANSFER_SYNTAX, UNDEFINED, Draft
from tests.fuzz.mutations import damaged, make_mutant
from tests.fuzz.seeds import CANARY, DICOM, Seed, body_counts, make_seeds
from tests.fuzz.trial import MOST_RESIDENT, Chunk, Ledger, Outcome, outcome_of, try_chunk
from tfds_builder.commandline.errors import UserError
from tfds_builder.readers.image_file import decode
from tfds_builder.studies.study import UNFORESEEN, ReadStudy
from tfds_builder.workers import Lost

STRUCTURAL = [(DICOM, name) for name in DICOM_DAMAGE] + [
    (kind, name) for kind, damage in PICTURE_DAMAGE.items() for name in damage
]


@pytest.fixture(scope="module")
def seeds() -> tuple[Seed, ...]:
    return make_seeds()


def seed_named(seeds: tuple[Seed, ...], name: str) -> Seed:
    return next(seed for seed in seeds if seed.kind == DICOM and seed.name == name)


def refusal(content: bytes) -> str:
    with pytest.raises(UserError) as caught:
        decode(content)
    return str(caught.value)


def hashes(seed: int, seeds: tuple[Seed, ...], files: int) -> list[str]:
    contents = (make_mutant(seed, number, seeds).content for number in range(files))
    return [hashlib.sha256(content).hexdigest() for content in contents]


def test_sixty_damaged_files_are_ingested_or_rejected(tmp_path, capsys):
    main(["--files", "60", "--workers", "2", "--keep", str(tmp_path / "failures")])
    printed = capsys.readouterr().out
    assert "60 files in" in printed
    assert "slowest: " in printed
    assert not (tmp_path / "failures").exists()


def test_a_file_depends_on_the_seed_and_its_number_alone(seeds):
    first = hashes(0, seeds, 200)
    assert hashes(0, make_seeds(), 200) == first
    assert len(set(first)) > 190  # An empty file is like any other.
    assert len(set(first) & set(hashes(1, seeds, 50))) < 5
    assert hashlib.sha256(make_mutant(0, 150, seeds).content).hexdigest() == first[150]


def test_every_sound_file_is_ingested_and_says_the_word_nowhere(seeds, tmp_path):
    files = []
    for number, seed in enumerate(seeds):
        path = tmp_path / str(number)
        path.write_bytes(seed.content)
        files.append((number, path, seed.frame))
        if seed.kind == DICOM:
            assert Draft.of(seed.content).deflated or CANARY.encode() in seed.content
    announced = []
    outcomes = try_chunk(Chunk(tuple(files)), announced.append)
    assert announced == [number for number, _, _ in files]
    for outcome, seed in zip(outcomes, seeds, strict=True):
        assert outcome.images in (1, 2), (seed.name, outcome)
        assert (outcome.reason, outcome.error, outcome.leaks) == (None, None, False)
        assert outcome.resident > 0


def test_a_draft_of_a_sound_file_is_that_file(seeds):
    for seed in seeds:
        if seed.kind == DICOM:
            draft = Draft.of(seed.content)
            again = draft.encode()
            assert draft.deflated or again == seed.content
            assert Draft.of(again) == draft


@pytest.mark.parametrize("kind, name", STRUCTURAL)
def test_each_structural_damage_changes_files(kind, name, seeds):
    own = [seed for seed in seeds if seed.kind == kind and len(seed.content) < 200_000]
    changed = sum(
        damaged(Random(f"{n}"), seed, [name]) != damaged(Random(f"{n}"), seed, [])
        for n, seed in enumerate(own)
    )
    # RLE is one syntax of many, and has two files here.
    assert changed >= (2 if name == "rle lies" else len(own) // 3)


@pytest.mark.parametrize("name", BYTE_DAMAGE)
def test_each_damage_of_bytes_changes_files(name, seeds):
    changed = sum(
        BYTE_DAMAGE[name](Random(f"{n}"), seed.content, seeds) != seed.content
        for n, seed in enumerate(seeds)
    )
    assert changed > 0.9 * len(seeds)


def test_damage_can_be_done_to_what_is_left_of_a_file(seeds):
    for name, damage in BYTE_DAMAGE.items():
        for content in (b"", b"\0", bytes(30)):
            assert isinstance(damage(Random(name), content, seeds), bytes)


@pytest.mark.parametrize(
    "outcome, fault",
    [
        (Outcome(1, images=2), None),
        (Outcome(1, reason="is empty"), None),
        (Outcome(1, reason="needed too much memory", lost=True), None),
        (Outcome(1, reason=f"{UNFORESEEN} (KeyError)"), f"{UNFORESEEN} (KeyError)"),
        (Outcome(1, reason="the decoder crashed", lost=True), "the decoder crashed"),
        (Outcome(1, reason="took longer than 5 s", lost=True), "took longer than 5 s"),
        (Outcome(1, images=1, seconds=5.5), "took 5.5 s"),
        (Outcome(1, images=1, resident=MOST_RESIDENT + 2**20), "took 1537 MiB of memory"),
        (Outcome(1, error="ValueError: no"), "raised ValueError: no"),
        (Outcome(1, reason="names it", leaks=True), "what the file says is repeated"),
        (Outcome(1), "neither ingested nor rejected"),
        (Outcome(1, images=1, reason="is empty"), "ingested and rejected"),
    ],
)
def test_what_is_not_dealt_with_well_is_a_fault(outcome, fault):
    ledger = Ledger(5.0)
    assert ledger.add(outcome) == fault
    assert ledger.faults == ([(1, fault)] if fault else [])
    assert ledger.ingested + ledger.rejected.total() + len(ledger.faults) == ledger.files == 1


def test_a_reason_that_repeats_the_file_is_seen_in_any_case():
    assert outcome_of(1, ReadStudy((), ((1, "is of Canary^Jane"),), {})).leaks
    assert not outcome_of(1, ReadStudy((), ((1, "is empty"),), {})).leaks


def test_an_error_that_no_reader_should_raise_is_an_outcome(tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise TypeError("no such thing")

    monkeypatch.setattr(trial, "read_study", broken)
    (outcome,) = try_chunk(Chunk(((3, tmp_path, None),)))
    assert outcome.error == "TypeError: no such thing"


def test_a_file_that_cost_its_worker_is_named_and_not_tried_again(tmp_path):
    chunk = Chunk(((3, tmp_path / "none", None), (4, tmp_path / "none", None)))
    again = chunk.without(Lost(3, "the decoder crashed"))
    lost, other = try_chunk(again)
    assert (lost.number, lost.lost, lost.reason) == (3, True, "the decoder crashed")
    assert (other.number, other.lost) == (4, False)
    assert again.without(Lost(3, "the decoder crashed")) is None
    assert chunk.without(Lost(None, "the decoder crashed")) is None


def test_a_fault_ends_in_status_1_and_a_file_that_can_be_made_again(
    tmp_path, monkeypatch, capsys, seeds
):
    monkeypatch.setattr(trial, "fault_of", lambda outcome, seconds: "planted")
    with pytest.raises(SystemExit) as caught:
        main(["--seed", "5", "--only", "7", "--workers", "1", "--keep", str(tmp_path)])
    assert caught.value.code == 1
    (kept,) = tmp_path.iterdir()
    assert kept.read_bytes() == make_mutant(5, 7, seeds).content
    printed = capsys.readouterr().out
    assert "--seed 5 --only 7" in printed
    assert "planted" in printed


@pytest.mark.parametrize(
    "arguments",
    [
        ["--files", "0"],
        ["--workers", "0"],
        ["--file_seconds", "nan"],
        ["--only", "-1"],
        ["--seconds", "1"],
    ],
)
def test_wrong_options_are_named(arguments):
    with pytest.raises(UserError, match=arguments[0]):
        main(arguments)


def test_big_endian_counts_become_native(seeds):
    (view,) = decode(seed_named(seeds, "big endian, 1 views").content).views
    assert view.native.dtype.isnative
    np.testing.assert_array_equal(view.native, body_counts(512, 128, 1)[0])


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("damage", ["elements", "items", "items of known length"])
def test_far_too_many_parts_are_refused_at_once(seeds, syntax, damage):
    draft = Draft.of(seed_named(seeds, "small").content)
    draft.deflated = syntax == DeflatedExplicitVRLittleEndian
    draft.put_text(TRANSFER_SYNTAX, b"UI", syntax + "\0" * (len(syntax) % 2))
    if damage == "elements":
        place = draft.body.index(draft.find(PIXEL_DATA))
        draft.body[place:place] = [replace(draft.find(ROWS), tag=0x00290000)] * 200_000
    else:
        draft.put(0x00540022, b"SQ", b"\xfe\xff\0\xe0\0\0\0\0" * 200_000)
        if damage == "items":
            draft.find(0x00540022).length = UNDEFINED
    reason = refusal(draft.encode())
    assert "header far larger" in reason


def test_deflated_data_is_read_whole_and_its_end_is_needed(seeds):
    sound = seed_named(seeds, "deflated, 2 views").content
    views = decode(sound).views
    np.testing.assert_array_equal([view.native for view in views], body_counts(512, 128, 2))
    assert "ends too early" in refusal(sound[:-100])


def test_a_run_beyond_the_end_of_an_rle_segment_is_damage(seeds):
    draft = Draft.of(seed_named(seeds, "RLE, 1 views").content)
    table, frame = draft.fragments
    # 127 zeros a run, which the size of the segment is no multiple of.
    draft.put_fragments([table, frame[:64] + b"\x82\0" * 2000])
    assert "damaged pixels" in refusal(draft.encode())


@pytest.mark.parametrize("name", ["JPEG lossless SV1", "JPEG lossless", "JPEG baseline"])
@pytest.mark.parametrize("place, value", [(0, 0), (1, 0xFE), (3, 2), (4, 3), (4, 0x20)])
def test_a_jpeg_without_a_table_that_it_needs_is_refused(seeds, name, place, value):
    """GDCM ends the process where it is given a lossless one."""
    draft = Draft.of(seed_named(seeds, f"{name}, 1 views").content)
    table, frame = draft.fragments
    lying = bytearray(frame)
    lying[lying.index(b"\xff\xc4") + place] = value
    draft.put_fragments([table, bytes(lying)])
    assert "without its tables" in refusal(draft.encode())


@pytest.mark.parametrize(
    "name, marker, place, value, bits",
    [
        ("JPEG-LS", b"\xff\xf7", 4, 17, 17),
        ("JPEG lossless SV1", b"\xff\xc3", 4, 255, 255),
        ("JPEG 2000", b"\xff\x51", 40, 36, 37),
        ("JPEG baseline", b"\xff\xc0", 4, 12, 12),
    ],
)
def test_a_codestream_deeper_than_its_header_is_refused(seeds, name, marker, place, value, bits):
    """GDCM ends the process where it is given the first two."""
    draft = Draft.of(seed_named(seeds, f"{name}, 1 views").content)
    table, frame = draft.fragments
    lying = bytearray(frame)
    lying[lying.index(marker) + place] = value
    draft.put_fragments([table, bytes(lying)])
    assert f"codestream says {bits}" in refusal(draft.encode())
