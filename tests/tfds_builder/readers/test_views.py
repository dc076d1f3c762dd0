"""Views by ranks of evidence, over all that a header can say, without pixels."""

import itertools

import numpy as np
import pytest
from pydicom.config import disable_value_validation
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from tfds_builder.commandline.errors import UserError
from tfds_builder.readers.views import (
    ANGLE,
    ANTERIOR,
    CODED,
    HEAD_DOWN,
    MANIFEST,
    ORDER,
    OTHER_ANGLES,
    OTHER_CODE,
    POSTERIOR,
    PRONE,
    RANKS,
    TEXT,
    UNKNOWN,
    VENDOR,
    Evidence,
    decide,
    resolve_views,
    views_in,
)

OPPOSITE = {ANTERIOR: POSTERIOR, POSTERIOR: ANTERIOR}
RIGHT, MISSING, WRONG, TORN = "right", "missing", "wrong", "torn"
CODES = {ANTERIOR: ("399321004", "SCT"), POSTERIOR: ("399001007", "SCT")}
GE_CODES = {ANTERIOR: ("G-5215", "SRT"), POSTERIOR: ("G-5216", "SRT")}


def said(state: str, truth: str) -> frozenset[str]:
    return {
        RIGHT: frozenset({truth}),
        MISSING: frozenset(),
        WRONG: frozenset({OPPOSITE[truth]}),
        TORN: frozenset(OPPOSITE),
    }[state]


@pytest.mark.parametrize("truths", [(ANTERIOR,), (ANTERIOR, POSTERIOR), (POSTERIOR, ANTERIOR)])
def test_of_all_combinations_the_highest_rank_that_speaks_decides_and_none_is_silent(truths):
    for states in itertools.product((RIGHT, MISSING, WRONG, TORN), repeat=len(RANKS)):
        frames = [
            Evidence(n, {r: said(s, truth) for r, s in zip(RANKS, states, strict=True)})
            for n, truth in enumerate(truths, start=1)
        ]
        speaking = [(r, s) for r, s in zip(RANKS, states, strict=True) if s != MISSING]
        if not speaking and len(truths) == 1:
            assert [view.name for view in decide(frames)] == [UNKNOWN]
            continue
        if not speaking or speaking[0][1] == TORN:
            with pytest.raises(UserError, match="'frame' and 'view'"):
                decide(frames)
            continue
        (top, state), *lower = speaking
        for view, truth in zip(decide(frames), truths, strict=True):
            name = truth if state == RIGHT else OPPOSITE[truth]
            assert (view.name, view.rule) == (name, top), states
            against = [rank for rank, other in lower if other != state]
            assert len(view.findings) == len(against), states
            for rank, finding in zip(against, view.findings, strict=True):
                assert finding.startswith(f"{rank} says ")
                assert finding.endswith(f", {top} {name}")


def test_the_order_of_detectors_is_noted_only_where_it_decides():
    frames = [Evidence(n, {ORDER: frozenset({name})}) for n, name in enumerate(OPPOSITE, start=1)]
    assert [view.notes for view in decide(frames, order_note="assumed")] == [("assumed",)] * 2
    coded = [
        Evidence(n, {ORDER: frozenset({name}), CODED: frozenset({name})})
        for n, name in enumerate(OPPOSITE, start=1)
    ]
    assert [view.notes for view in decide(coded, order_note="assumed")] == [()] * 2


def test_in_doubt_of_the_vectors_only_what_names_frames_decides():
    for rank in RANKS:
        frames = [Evidence(n, {rank: frozenset({v})}) for n, v in enumerate(OPPOSITE, start=1)]
        if rank in (MANIFEST, CODED, VENDOR):
            assert [view.name for view in decide(frames, doubt="Vector odd")] == list(OPPOSITE)
        else:
            with pytest.raises(UserError, match=r"Vector odd; .*'frame' and 'view'"):
                decide(frames, doubt="Vector odd")


def header(
    codes=(), names=(), texts=(), angles=(), detectors=None, scheme=CODES, **elements
) -> Dataset:
    """The header of a file, evidence given frame by frame; None says nothing."""
    frames = max(map(len, (codes, names, texts, angles, detectors or (), (1,))))
    dataset = Dataset()
    dataset.NumberOfFrames = dataset.NumberOfDetectors = frames
    dataset.EnergyWindowVector = [1] * frames
    dataset.DetectorVector = detectors or list(range(1, frames + 1))
    items = [Dataset() for _ in range(frames)]
    by_frame = [items[n - 1] for n in dataset.DetectorVector] if frames > 1 else items
    for item, view in zip(by_frame, codes, strict=False):
        if view:
            code = Dataset()
            code.CodeValue, code.CodingSchemeDesignator = scheme[view]
            code.CodeMeaning = view
            item.ViewCodeSequence = [code]
    for item, text in zip(by_frame, texts, strict=False):
        item.ViewPosition = text or ""
    for item, angle in zip(by_frame, angles, strict=False):
        if angle is not None:
            item.StartAngle = angle
    dataset.DetectorInformationSequence = items
    if names:
        block = dataset.private_block(0x0011, "GEMS_GENIE_1", create=True)
        block.add_new(0x12, "LO", list(names))
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


WORDS = {ANTERIOR: "ANT", POSTERIOR: "POST"}
DEGREES = {ANTERIOR: 180, POSTERIOR: 0}


@pytest.mark.parametrize("truths", [(ANTERIOR, POSTERIOR), (POSTERIOR, ANTERIOR)])
def test_of_all_headers_none_is_swapped_without_a_finding_that_names_both_sides(truths):
    for states in itertools.product((RIGHT, MISSING, WRONG), repeat=len(RANKS) - 1):
        for order in (RIGHT, WRONG):
            state = dict(zip((MANIFEST, CODED, VENDOR, TEXT, ANGLE), states, strict=True))
            state[ORDER] = order

            def views(rank, state=state):
                if state[rank] == MISSING:
                    return (None, None)
                return truths if state[rank] == RIGHT else truths[::-1]

            detectors = [1, 2] if views(ORDER) == (ANTERIOR, POSTERIOR) else [2, 1]
            file = header(
                codes=views(CODED),
                names=[WORDS[v] for v in views(VENDOR) if v],
                texts=[WORDS.get(v) for v in views(TEXT)],
                angles=[DEGREES.get(v) for v in views(ANGLE)],
                detectors=detectors,
            )
            if state[MANIFEST] == MISSING:
                found = resolve_views(file)
            else:
                found = [
                    view
                    for frame, name in enumerate(views(MANIFEST), start=1)
                    for view in resolve_views(file, frame, name)
                ]
            top = next(rank for rank in RANKS if state[rank] != MISSING)
            assert [(view.name, view.rule) for view in found] == [(v, top) for v in views(top)]
            against = [rank for rank in RANKS if state[rank] not in (MISSING, state[top])]
            for view in found:
                assert [finding.split(" says ")[0] for finding in view.findings] == against
                assert all(f", {top} {view.name}" in finding for finding in view.findings)


BOTH = [(ANTERIOR, POSTERIOR), (POSTERIOR, ANTERIOR)]


@pytest.mark.parametrize("views", BOTH)
def test_in_the_manner_of_ge_discovery_siemens_symbia_and_by_angles_alone_all_views_are_right(
    views,
):
    suffix = {ANTERIOR: "WB_E", POSTERIOR: "WB_F"}
    around = {ANTERIOR: 180, POSTERIOR: 360}
    degrees = [DEGREES[view] for view in views]
    files = [
        header(names=[WORDS[view] for view in views], angles=degrees),
        header(codes=views, angles=degrees, scheme=GE_CODES),
        header(names=[suffix[view] for view in views], angles=[around[v] for v in views]),
        header(angles=degrees),
        header(angles=[around[view] for view in views]),
        header(angles=[around[view] + 2.5 for view in views]),
    ]
    detectors_above = views == (ANTERIOR, POSTERIOR)
    for file in files:
        found = resolve_views(file)
        assert tuple(view.name for view in found) == views
        for view in found:
            assert view.notes == ()
            assert bool(view.findings) != detectors_above


@pytest.mark.parametrize(
    "text",
    [
        "WB BONE 3H POST INJECTION",
        "3HR POST",
        "3 hrs post",
        "post therapy",
        "Bone WB post-inj",
        "POST OP",
        "post_treatment",
        "WB 180min post",
        "POST 3H",
        "POST_3h",
        "POST I-131",
        "WB 2 weeks post",
        "POST 2 WEEKS",
        "6 MONTHS POST",
        "3h30 post",
        "3H00 POST",
        "3:00 post",
        "3 Stunden post",
        "180' post",
        "WB POST 150 mCi I-131",
        "Post 7400 MBq",
        "POST 24",
        "THERAPY POST",
        "DELAYED POST",
        "POST SCAN",
        "Tc99m MDP post dose",
        "2.5 h post",
        "posture",
        "positive",
    ],
)
def test_words_that_say_when_name_no_view(text):
    assert views_in(text) == frozenset()


@pytest.mark.parametrize(
    "text",
    [
        "POST",
        "WB POST",
        "BONE_POST",
        "POS",
        "Post view",
        "POST_WB",
        "post whole body",
        "WB-POST-1",
        "POST1",
        "Tc-99m POST",
        "FACE POST",
        "3H WB POST",
        "posterior 3h post injection",
        "3 h post injection, POST",
    ],
)
def test_words_that_say_from_where_name_the_posterior_view(text):
    assert views_in(text) == {POSTERIOR}


@pytest.mark.parametrize("text", ["ANT", "FACE ANT", "WB ANT 3h post injection", "vue antérieure"])
def test_words_that_say_from_where_name_the_anterior_view(text):
    assert views_in(text) == {ANTERIOR}


@pytest.mark.parametrize(
    "text", ["Left anterior oblique", "LT ANT OBL", "right lateral, post", "LPO"]
)
def test_words_for_another_view_than_the_two_name_none(text):
    assert views_in(text) == frozenset()


def test_detectors_in_order_are_no_views_where_their_codes_say_lateral():
    file = header(codes=(ANTERIOR, POSTERIOR), scheme=dict.fromkeys(OPPOSITE, ("G-5221", "SRT")))
    for item in file.DetectorInformationSequence:
        item.ViewCodeSequence[0].CodeMeaning = "left lateral"
    with pytest.raises(UserError, match="two frames that nothing tells apart"):
        resolve_views(file)


def test_private_text_of_another_creator_names_no_view():
    file = Dataset()
    file.private_block(0x0011, "SPI RELEASE 1", create=True).add_new(0x12, "LO", "POST")
    (view,) = resolve_views(file)
    assert view.name == UNKNOWN


@pytest.mark.parametrize("said", ["abc", "180,0", ["180", "0"]])
def test_an_angle_that_is_no_number_is_no_evidence(said):
    file = header(codes=[ANTERIOR])
    with disable_value_validation():
        file.DetectorInformationSequence[0].add(
            RawDataElement(
                Tag("StartAngle"), "DS", 0, "\\".join(np.atleast_1d(said)).encode(), 0, False, True
            )
        )
    (view,) = resolve_views(file)
    assert (view.name, view.findings) == (ANTERIOR, ())


def test_a_lone_angle_counts_unless_it_is_what_nobody_filled_in():
    found = [resolve_views(header(angles=[degrees])) for degrees in (180, 360, 0)]
    assert [view.name for (view,) in found] == [ANTERIOR, POSTERIOR, UNKNOWN]


@pytest.mark.parametrize("angles", [(90, 270), (180, 180), (45, 225)])
def test_angles_that_name_no_view_are_a_finding(angles):
    for view in resolve_views(header(angles=angles)):
        assert view.rule == ORDER
        assert view.findings == (OTHER_ANGLES,)


def test_a_code_that_names_another_view_is_a_finding():
    lateral = {ANTERIOR: ("G-5221", "SRT")}
    file = header(codes=[ANTERIOR], scheme=lateral)
    file.DetectorInformationSequence[0].ViewCodeSequence[0].CodeMeaning = "left lateral"
    (view,) = resolve_views(file)
    assert (view.name, view.findings) == (UNKNOWN, (OTHER_CODE,))


def test_the_value_of_a_code_counts_and_its_meaning_is_text():
    file = header(codes=[ANTERIOR])
    file.DetectorInformationSequence[0].ViewCodeSequence[0].CodeMeaning = "Posterior projection"
    (view,) = resolve_views(file)
    assert (view.name, view.rule) == (ANTERIOR, CODED)
    assert view.findings == (f"{TEXT} says posterior, {CODED} anterior",)


@pytest.mark.parametrize("code", [("F-10310", "Prone"), ("1240000", ""), ("X", "lying prone")])
def test_a_prone_patient_is_a_finding_and_turns_the_order_of_detectors(code):
    modifier, lying = Dataset(), Dataset()
    modifier.CodeValue, modifier.CodeMeaning = code
    lying.PatientOrientationModifierCodeSequence = [modifier]
    found = resolve_views(header(detectors=[1, 2], PatientOrientationCodeSequence=[lying]))
    assert [view.name for view in found] == [POSTERIOR, ANTERIOR]
    assert all(view.findings == (PRONE,) and "prone" in view.notes[0] for view in found)
    coded = header(codes=(ANTERIOR, POSTERIOR), PatientPosition="HFP")
    assert [view.name for view in resolve_views(coded)] == [ANTERIOR, POSTERIOR]
    assert all(PRONE in view.findings for view in resolve_views(coded))


def test_a_body_that_stands_on_its_head_is_a_finding():
    (view,) = resolve_views(header(codes=[ANTERIOR], PatientOrientation=["L", "H"]))
    assert view.findings == (HEAD_DOWN,)
    (view,) = resolve_views(header(codes=[ANTERIOR], PatientOrientation=["L", "FR"]))
    assert view.findings == ()
    file = header(codes=[ANTERIOR])
    file.DetectorInformationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 0, 1]
    assert resolve_views(file)[0].findings == (HEAD_DOWN,)


def test_a_frame_taken_out_of_its_file_is_never_given_the_other_frames_view():
    for keyword in ("DetectorVector", "EnergyWindowVector"):
        file = header(codes=(ANTERIOR, POSTERIOR), names=("ANT", "POST"))
        file.NumberOfFrames = 1
        if keyword == "EnergyWindowVector":
            del file.DetectorVector
        (view,) = resolve_views(file)
        assert view.name == UNKNOWN
        assert f"{keyword} has 2 entries for 1 frames" in view.findings
        (view,) = resolve_views(file, view=POSTERIOR)
        assert (view.name, view.rule) == (POSTERIOR, MANIFEST)
    del file.EnergyWindowVector
    (view,) = resolve_views(file)
    assert view.name == UNKNOWN


def test_a_vector_that_cannot_be_meant_stops_no_file_in_which_nothing_can_be_confused():
    file = header(SeriesDescription="WB POST")
    file.EnergyWindowVector = [1, 1]
    (view,) = resolve_views(file)
    assert (view.name, view.findings) == (
        POSTERIOR,
        ("EnergyWindowVector has 2 entries for 1 frames",),
    )
    file = header(angles=(180, 0))
    file.EnergyWindowVector = [0, 0]
    assert [view.name for view in resolve_views(file)] == [ANTERIOR, POSTERIOR]


def test_one_detector_for_both_frames_is_refused_by_name_unless_something_names_the_frames():
    for elements in ({}, {"NumberOfDetectors": 1}, {"DetectorInformationSequence": []}):
        file = header(detectors=[1, 2], **elements)
        file.DetectorVector = [1, 1]
        with pytest.raises(UserError, match="DetectorVector names one detector for all frames"):
            resolve_views(file)
        (view,) = resolve_views(file, frame=2, view=ANTERIOR)
        assert view.name == ANTERIOR


def test_of_one_frame_of_two_the_other_frames_evidence_counts_too():
    file = header(codes=(ANTERIOR, None), angles=(None, None))
    (view,) = resolve_views(file, frame=2)
    assert (view.name, view.rule) == (POSTERIOR, "opposite detector")
    (view,) = resolve_views(header(detectors=[2, 1]), frame=1)
    assert (view.name, view.rule) == (POSTERIOR, ORDER)
