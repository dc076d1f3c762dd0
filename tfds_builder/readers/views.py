"""Which frames of a nuclear medicine file are its views, and which view each one is.

In: a DICOM header and what the manifest says. Out: frame numbers with a view, the rule that decided
it, what was assumed, and what contradicts it. Evidence has ranks, `RANKS`: the highest that speaks
decides, and what contradicts it from below is a finding.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pydicom.dataset import Dataset

from tfds_builder.commandline.errors import UserError
from tfds_builder.readers.elements import numbers
from tfds_builder.readers.scintigram import FrameView

ANTERIOR, POSTERIOR, UNKNOWN = "anterior", "posterior", "unknown"
TC99M_PHOTOPEAK_KEV = 140.5

MANIFEST, CODED, VENDOR, TEXT, ANGLE, ORDER = RANKS = (
    "manifest",
    "coded view",
    "GE private text",
    "description text",
    "start angle",
    "detector order",
)

NO_VIEW = "view unknown: no rule names it; give it in the manifest's 'view'"
ASSUMED_OPPOSITE = "view assumed to be opposite to the file's other view"
ASSUMED_ORDER = "view assumed from detector order: detector 1 anterior, detector 2 posterior"
ASSUMED_PRONE_ORDER = (
    "view assumed from detector order, the patient prone: detector 1 posterior, detector 2 anterior"
)
PRONE = "the patient lies prone by the header: views by angle or detector order may be swapped"
HEAD_DOWN = "head down by the header: its rows run towards the head; nothing was turned"
OTHER_CODE = "its view code is neither anterior nor posterior"
OTHER_ANGLES = "start angles that name neither an anterior nor a posterior view"
SAME_AGAIN = "another frame of the file is named the same view"
_SETTLE = "say in the manifest's 'frame' and 'view' which frame is which"

_OPPOSITE = {ANTERIOR: POSTERIOR, POSTERIOR: ANTERIOR}
# DICOM PS3.16 CID 26 (SNOMED RT and CT), codes retired from it, and a private scheme seen in use.
_CODES = {
    **dict.fromkeys(("G-5215", "G-5200", "399321004", "AN"), ANTERIOR),
    **dict.fromkeys(("G-5216", "G-5201", "399001007", "PO"), POSTERIOR),
}
# DICOM PS3.16 CID 20, SNOMED RT and CT.
_PRONE_CODES = ("F-10310", "1240000")
# A word ends where letters and digits end: names are joined by underscores too.
_START, _END = r"(?<![^\W_])", r"(?![^\W_])"
_ANTERIOR_WORD = re.compile(rf"{_START}ant(?:erior|[eé]rieure?)?{_END}", re.I)
_POSTERIOR_WORD = re.compile(rf"{_START}post(?:erior|[eé]rieure?){_END}", re.I)
# Neither is a straight view (PS3.16 CID 26 has codes of its own for them).
_OTHER_WORD = re.compile(
    rf"{_START}(?:obl(?:ique|icua|icuo)?|lat(?:eral)?|lao|rao|lpo|rpo){_END}", re.I
)
# These may also say when: "3 h post", "2 weeks post", "post therapy". So they name a view only
# where no number or treatment stands before them and nothing but a view's own words, or the number
# of a picture ("POST1", "post-1"), behind them.
_SHORT_POSTERIOR = re.compile(rf"{_START}post?(?:[_-]?\d)?{_END}", re.I)
_VIEW_WORD = (
    r"(?:view|proj(?:ection)?|wb|wbs|whole|wholebody|body|bone|bones|skeleton|static|planar|"
    r"image|img|spot|raw|ant|anterior|e|f)"
)
_GAP = r"(?:[^\w|]|_)*"
_WHEN_BEFORE = re.compile(
    rf"{_START}(?:(?!99m)\d[\d.,:'h]*{_GAP}(?!{_VIEW_WORD}\d*{_END})[^\W\d_]*|"
    rf"therapy|treatment|ablation|dose|delayed|late|rx|p\.?i){_GAP}$",
    re.I,
)
_VIEW_BEHIND = re.compile(rf"{_GAP}(?:$|\||{_VIEW_WORD}\d*{_END})", re.I)
GE_GROUP, _GE_CREATOR, GE_ELEMENTS = 0x0011, "GEMS_GENIE_1", (0x12, 0x30)
_TEXT_FIELDS = ("ViewPosition", "SeriesDescription", "AcquisitionProtocolDescription", "ImageID")
# StartAngle counts from the patient's back (PS3.3 C.8.4.11).
_ANGLES = {POSTERIOR: 0.0, ANTERIOR: 180.0}
_ANGLE_TOLERANCE = 10.0


@dataclass(frozen=True)
class Evidence:
    """What is said of one frame, by its DICOM frame number.

    `says` is rank -> the views that it names: one, both where it contradicts itself, or none.
    """

    frame: int
    says: Mapping[str, frozenset[str]]

    def of(self, rank: str) -> frozenset[str]:
        """The views that a rank names."""
        return self.says.get(rank, frozenset())


def decide(
    frames: Sequence[Evidence], wanted: int | None = None, doubt: str = "", order_note: str = ""
) -> tuple[FrameView, ...]:
    """Names the views of a file's one or two frames, which face each other, from all evidence.

    What names one of two frames names the other too, which is opposite. The highest rank that
    speaks decides; each rank below that says otherwise is a finding that names both sides.

    Args:
      frames: the evidence of one or of two frames.
      wanted: the only frame to name, where the manifest asks for one; what is said of it then
        counts more than what is said of the other frame.
      doubt: why the frame vectors cannot be meant; then the lower ranks may not decide.
      order_note: what is assumed where the order of the detectors decides.

    Raises:
      UserError: a rank contradicts itself and no higher one speaks, or nothing but what is in doubt
        speaks.
    """
    chosen = [one for one in frames if wanted in (None, one.frame)]
    return tuple(_decided(one, frames, wanted is not None, doubt, order_note) for one in chosen)


def _decided(
    frame: Evidence, frames: Sequence[Evidence], named: bool, doubt: str, order_note: str
) -> FrameView:
    others = [one for one in frames if one is not frame]
    # A rank names this frame, or the other one and so this frame.
    votes = {
        rank: frame.of(rank) | {_OPPOSITE[name] for one in others for name in one.of(rank)}
        for rank in RANKS
    }
    rank = next((rank for rank in RANKS if votes[rank]), None)
    # These tell frames apart without, or in spite of, vectors that cannot be meant.
    if doubt and rank not in (MANIFEST, CODED, VENDOR):
        raise UserError(f"{doubt}; {_SETTLE}")
    if rank is None:
        if others and not named:
            raise UserError(f"two frames that nothing tells apart; {_SETTLE}")
        return FrameView(frame.frame, UNKNOWN, "none", (NO_VIEW,))
    own = frame.of(rank)
    deciding = own if named and len(own) == 1 else votes[rank]
    if len(deciding) > 1:
        said = ", ".join(
            f"{' and '.join(sorted(one.of(rank)))} of frame {one.frame}"
            for one in frames
            if one.of(rank)
        )
        raise UserError(f"{rank} contradicts itself (it says {said}); {_SETTLE}")
    (name,) = deciding
    findings = [SAME_AGAIN] if deciding != votes[rank] else []
    for lower in RANKS[RANKS.index(rank) + 1 :]:
        if _OPPOSITE[name] in votes[lower]:
            both = "both" if len(votes[lower]) > 1 else _OPPOSITE[name]
            findings.append(f"{lower} says {both}, {rank} {name}")
    if own:
        rule, notes = rank, (order_note,) if order_note and rank == ORDER else ()
    else:
        rule, notes = "opposite detector", (ASSUMED_OPPOSITE,)
    return FrameView(frame.frame, name, rule, notes, tuple(findings))


@dataclass(frozen=True)
class _Frame:
    """A frame, its detector's number, and that detector's item of DetectorInformationSequence."""

    number: int
    detector: int | None
    item: Dataset


def resolve_views(
    header: Dataset, frame: int | None = None, view: str | None = None, count: int | None = None
) -> tuple[FrameView, ...]:
    """Finds the views of a file, in frame order.

    Args:
      header: the DICOM data set, private elements included.
      frame: the manifest's frame number, or None for every view.
      view: the manifest's view, or None; allowed where one frame is meant.
      count: how many frames there are, where NumberOfFrames does not say so.

    Raises:
      UserError: frames that cannot be told apart.
    """
    count = count or int(header.get("NumberOfFrames") or 1)
    if frame is not None and frame > count:
        raise UserError(f"frame {frame} is asked for, but the file has {count}; mend the manifest")
    said_windows = _vector(header, "EnergyWindowVector")
    known_windows = len(header.get("EnergyWindowInformationSequence") or [])
    window_doubt = _doubt("EnergyWindowVector", said_windows, count, known_windows)
    windows = [] if window_doubt else said_windows
    frames, detector_doubt = _frames(header, count)
    chosen = _chosen(header, frames, windows, frame, window_doubt)
    if view and frame is None and len(chosen) > 1:
        raise UserError(
            f"view '{view}' is given for a file of {len(chosen)} views; add a row with 'frame' "
            "for each, or leave view empty"
        )
    is_prone = _is_prone(header)
    given = {frame or chosen[0].number: view}
    evidence = _evidence(header, chosen, count, is_prone, given)
    doubts = filter(None, (window_doubt, detector_doubt))
    oddities = (*doubts, *_oddities(header, chosen, is_prone))
    order_note = ASSUMED_PRONE_ORDER if is_prone else ASSUMED_ORDER
    # Nothing is confused where there is one frame, nor by windows of which there is but one.
    if known_windows < 2 and len(set(said_windows)) < 2 and len(said_windows) <= count:
        window_doubt = ""
    matter = " and ".join(filter(None, (window_doubt, detector_doubt)))
    views = decide(evidence, frame, matter if count > 1 else "", order_note)
    return tuple(replace(one, findings=one.findings + oddities) for one in views)


def _chosen(
    header: Dataset, frames: list[_Frame], windows: list[int], frame: int | None, doubt: str
) -> list[_Frame]:
    """The frames to be named: one or two views of one energy window."""
    if frame is not None:
        window = windows[frame - 1] if windows else None
        pair = [one for one in frames if not windows or windows[one.number - 1] == window]
        return pair if len(pair) <= 2 else [frames[frame - 1]]
    if len(set(windows)) > 1:
        window = _photopeak_window(header, sorted(set(windows)))
        frames = [one for one in frames if windows[one.number - 1] == window]
    if len(frames) > 2:
        why = f"{doubt}; " if doubt else ""
        raise UserError(
            f"{why}has {len(frames)} frames, not one or two views; "
            "name the frame to use in the manifest's 'frame'"
        )
    return frames


def _frames(header: Dataset, count: int) -> tuple[list[_Frame], str]:
    """Every frame with its detector, and why DetectorVector cannot be meant.

    Where it is absent or cannot be meant, the detectors' order is that of the frames, as the
    standard has it, where there is one for each; numbers that begin elsewhere keep their order.
    """
    values = _vector(header, "DetectorVector")
    items = list(header.get("DetectorInformationSequence") or [])
    said = header.get("NumberOfDetectors")
    known = max(len(items), said if isinstance(said, int) else 0)
    doubt = _doubt("DetectorVector", values, count, known)
    windows = _vector(header, "EnergyWindowVector")
    alike = len(set(values)) == 1 and not len(windows) == len(set(windows)) == count
    if not doubt and count > 1 and alike:
        doubt = "DetectorVector names one detector for all frames"
    if doubt or not values:
        order = sorted(set(values))
        if len(values) == count == len(order) == len(items):
            values = [order.index(value) + 1 for value in values]
        elif len(items) in (0, count):
            values = list(range(1, count + 1))
        else:
            values = []
    numbers = values or [None] * count
    return [
        _Frame(n, number, items[number - 1] if number and number <= len(items) else Dataset())
        for n, number in enumerate(numbers, start=1)
    ], doubt


def _vector(header: Dataset, keyword: str) -> list[int]:
    value = header.get(keyword)
    if value is None or value == "":
        return []
    return [value] if isinstance(value, int) else [int(one) for one in value]


def _doubt(keyword: str, values: list[int], count: int, known: int) -> str:
    """Why a frame vector cannot be meant; nothing where it can, or is absent."""
    if values and len(values) != count:
        return f"{keyword} has {len(values)} entries for {count} frames"
    if values and (min(values) < 1 or (known and max(values) > known)):
        return f"{keyword} has entries out of range"
    return ""


def _photopeak_window(header: Dataset, windows: list[int]) -> int:
    """The energy window around 140.5 keV; where several hold it, the one best centred on it."""
    items = header.get("EnergyWindowInformationSequence") or []
    centred = []
    for window in windows:
        item = items[window - 1] if window <= len(items) else Dataset()
        for limits in item.get("EnergyWindowRangeSequence") or []:
            edges = ("EnergyWindowLowerLimit", "EnergyWindowUpperLimit")
            low, high = (numbers(limits, keyword) or [math.nan] for keyword in edges)
            if low[0] <= TC99M_PHOTOPEAK_KEV <= high[0]:
                centred.append((abs((low[0] + high[0]) / 2 - TC99M_PHOTOPEAK_KEV), window))
    if not centred:
        raise UserError(
            f"has {len(windows)} energy windows, none of them known to hold "
            f"{TC99M_PHOTOPEAK_KEV} keV; name the frame to use in the manifest's 'frame'"
        )
    return min(centred)[1]


def _evidence(
    header: Dataset,
    frames: list[_Frame],
    count: int,
    is_prone: bool,
    given: Mapping[int, str | None],
) -> list[Evidence]:
    """All that the header says of each frame; `given` is what the manifest says of some."""
    angles, orders = _views_by_angle(frames), _views_by_order(frames, is_prone)
    evidence = []
    for frame, angle, order in zip(frames, angles, orders, strict=True):
        coded, meaning = _coded_views(frame.item)
        texts = [frame.item.get("ViewPosition"), meaning]
        if count == 1:
            texts += [header.get(field) for field in _TEXT_FIELDS]
        if _OTHER_WORD.search(meaning):
            order = None
        says = {
            MANIFEST: _known(given.get(frame.number)),
            CODED: coded,
            VENDOR: _vendor_views(header, frame.number, count),
            TEXT: _only(views_in(" | ".join(str(text) for text in texts if text))),
            ANGLE: _known(angle),
            ORDER: _known(order),
        }
        evidence.append(Evidence(frame.number, says))
    return evidence


def _known(name: str | None) -> frozenset[str]:
    return frozenset({name} if name else ())


def _only(names: frozenset[str]) -> frozenset[str]:
    """A text that names both views describes the examination, not a frame."""
    return names if len(names) == 1 else frozenset()


def _coded_views(detector_item: Dataset) -> tuple[frozenset[str], str]:
    """The views that its codes name, and the meanings of codes that say something else.

    The value of a code counts. Only where it is unknown, its meaning is taken for it.
    """
    names, meanings = set(), []
    for item in detector_item.get("ViewCodeSequence") or []:
        value = str(item.get("CodeValue") or item.get("LongCodeValue") or "").strip().upper()
        meaning = str(item.get("CodeMeaning") or "")
        if value in _CODES:
            names.add(_CODES[value])
            if views_in(meaning) != {_CODES[value]}:
                meanings.append(meaning)
        else:
            named = _only(views_in(meaning))
            names |= named
            meanings += [] if named else [meaning]
    return frozenset(names), " | ".join(meanings)


def _vendor_views(header: Dataset, number: int, count: int) -> frozenset[str]:
    """What data set and picture names of GE Genie say of a frame: ANT or _E, POS, POST or _F.

    A list that has not one name a frame says nothing: a frame may have been taken out of the file.
    """
    names = set()
    try:
        block = header.private_block(GE_GROUP, _GE_CREATOR)
    except KeyError:
        return frozenset()
    for element in filter(block.__contains__, GE_ELEMENTS):
        value = block[element].value
        if isinstance(value, bytes):
            value = value.decode("ascii", "replace")
        texts = value.split("\\") if isinstance(value, str) else value
        if isinstance(texts, Sequence) and len(texts) == count:
            text = str(texts[number - 1])
            suffix = {"_E": ANTERIOR, "_F": POSTERIOR}.get(text.strip("\0 ").upper()[-2:])
            names |= _only(views_in(text)) or _known(suffix)
    return frozenset(names)


def _views_by_angle(frames: list[_Frame]) -> list[str | None]:
    """The view of each frame by StartAngle.

    Two detectors must face each other, one above the patient. One angle alone counts unless it is
    0, which is what is left there where nobody fills it in.
    """
    angles = [_angle(frame) for frame in frames]
    names = [None if angle is None else _facing(angle) for angle in angles]
    if len(frames) == 2 and None not in angles:
        return names if set(names) == set(_ANGLES) else [None, None]
    return [name if angle else None for name, angle in zip(names, angles, strict=True)]


def _angle(frame: _Frame) -> float | None:
    said = numbers(frame.item, "StartAngle")
    return said[0] if len(said) == 1 else None


def _facing(angle: float) -> str | None:
    distances = {name: abs((angle - own + 180) % 360 - 180) for name, own in _ANGLES.items()}
    return next((name for name in _ANGLES if distances[name] <= _ANGLE_TOLERANCE), None)


def _views_by_order(frames: list[_Frame], is_prone: bool) -> list[str | None]:
    """Detector 1 is above the patient, detector 2 below."""
    if [frame.detector for frame in frames] not in ([1, 2], [2, 1]):
        return [None] * len(frames)
    above = POSTERIOR if is_prone else ANTERIOR
    return [above if frame.detector == 1 else _OPPOSITE[above] for frame in frames]


def views_in(text: str) -> frozenset[str]:
    """The views that the words of a text name.

    'Post' names none where it says when: "3 h post", "post injection", "post therapy". Words for an
    oblique or a lateral view name none either.
    """
    if _OTHER_WORD.search(text):
        return frozenset()
    names = set()
    if _ANTERIOR_WORD.search(text):
        names.add(ANTERIOR)
    if _POSTERIOR_WORD.search(text) or any(
        not _WHEN_BEFORE.search(text[: found.start()]) and _VIEW_BEHIND.match(text, found.end())
        for found in _SHORT_POSTERIOR.finditer(text)
    ):
        names.add(POSTERIOR)
    return frozenset(names)


def _is_prone(header: Dataset) -> bool:
    if str(header.get("PatientPosition") or "").strip().upper() in ("HFP", "FFP"):
        return True
    for lying in header.get("PatientOrientationCodeSequence") or []:
        for code in [lying, *(lying.get("PatientOrientationModifierCodeSequence") or [])]:
            value, meaning = (str(code.get(of) or "") for of in ("CodeValue", "CodeMeaning"))
            if value.strip() in _PRONE_CODES or re.search(r"\bprone\b", meaning, re.I):
                return True
    return False


def _oddities(header: Dataset, frames: list[_Frame], is_prone: bool) -> list[str]:
    """What the header says that a whole body, lying on the back, would not have."""
    found = [PRONE] if is_prone else []
    said = header.get("PatientOrientation") or ""
    downwards = "" if isinstance(said, str) or len(said) != 2 else str(said[1]).strip().upper()
    cosines = [numbers(frame.item, "ImageOrientationPatient") for frame in frames]
    if downwards.startswith("H") or any(len(six) == 6 and six[5] > 0.5 for six in cosines):
        found.append(HEAD_DOWN)
    if any(
        frame.item.get("ViewCodeSequence") and not _coded_views(frame.item)[0] for frame in frames
    ):
        found.append(OTHER_CODE)
    # All 0 is what is left there where nobody fills it in.
    angles = [angle for frame in frames if (angle := _angle(frame)) is not None]
    names = [_facing(angle) for angle in angles]
    if any(angles) and (None in names or len(set(names)) < len(names)):
        found.append(OTHER_ANGLES)
    return found
