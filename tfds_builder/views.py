"""Which frames of a nuclear medicine file are its views, and which view each one is.

In: a DICOM header and what the manifest says. Out: frame numbers with a view, the rule that decided
it, and what was assumed. Rules are tried in a fixed order and must not contradict each other.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.dataset import Dataset

from tfds_builder.errors import DataError

ANTERIOR, POSTERIOR, UNKNOWN = "anterior", "posterior", "unknown"
TC99M_PHOTOPEAK_KEV = 140.5

_OPPOSITE = {ANTERIOR: POSTERIOR, POSTERIOR: ANTERIOR}
# DICOM PS3.16 CID 26 (SNOMED RT and CT), codes retired from it, and a private scheme seen in use.
_CODES = {
    "G-5215": ANTERIOR,
    "G-5200": ANTERIOR,
    "399321004": ANTERIOR,
    "AN": ANTERIOR,
    "G-5216": POSTERIOR,
    "G-5201": POSTERIOR,
    "399001007": POSTERIOR,
    "PO": POSTERIOR,
}
_ANTERIOR_WORD = re.compile(r"(?:\b|_)(?:ant|anterior)(?:\b|_)", re.I)
_POSTERIOR_WORD = re.compile(r"(?:\b|_)(?:pos|post|posterior)(?:\b|_)", re.I)
_GE_CREATOR = "GEMS_GENIE_1"
_GE_GROUP, _GE_ELEMENTS = 0x0011, (0x12, 0x30)
_TEXT_FIELDS = ("ViewPosition", "SeriesDescription", "AcquisitionProtocolDescription", "ImageID")
# Degrees from above the patient, who lies on the back, to the detector.
_ANGLES = {ANTERIOR: 0.0, POSTERIOR: 180.0}
_ANGLE_TOLERANCE = 10.0


@dataclass(frozen=True)
class FrameView:
    """One frame that is a view.

    Attributes:
      frame: DICOM frame number, from 1.
      name: 'anterior', 'posterior' or 'unknown'.
      rule: what decided the name, for example 'coded view'.
      notes: assumptions made, without anything of the patient.
    """

    frame: int
    name: str
    rule: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Frame:
    number: int
    detector: int
    detector_item: Dataset


def resolve_views(
    header: Dataset, frame: int | None = None, view: str | None = None
) -> tuple[FrameView, ...]:
    """Finds the views of a file.

    Args:
      header: the DICOM data set, private elements included.
      frame: the manifest's frame number, or None for every view.
      view: the manifest's view, or None; allowed where one frame is meant.

    Returns:
      The views in frame order.

    Raises:
      DataError: frames that cannot be told apart, or rules that contradict each other.
    """
    frames = _chosen_frames(header, frame)
    if view and len(frames) > 1:
        raise DataError(
            f"view '{view}' is given for a file of {len(frames)} views; add a row with 'frame' "
            "for each, or leave view empty"
        )
    alone = len(frames) == 1 and _frame_count(header) == 1
    named = [_named(header, one, view, alone) for one in frames]
    resolved = _assume_missing(frames, named)
    names = [one.name for one in resolved if one.name != UNKNOWN]
    if len(names) != len(set(names)):
        raise DataError(
            f"frames {', '.join(str(one.frame) for one in resolved)} are all {names[0]}; "
            "name the one to use in the manifest's 'frame'"
        )
    return resolved


def _frame_count(header: Dataset) -> int:
    return int(header.get("NumberOfFrames") or 1)


def _chosen_frames(header: Dataset, frame: int | None) -> list[_Frame]:
    count = _frame_count(header)
    if frame is not None and frame > count:
        raise DataError(f"frame {frame} is asked for, but the file has {count}; mend the manifest")
    windows = _vector(header, "EnergyWindowVector", count)
    detectors = _vector(header, "DetectorVector", count)
    frames = [
        _Frame(n + 1, detector, _item(header, "DetectorInformationSequence", detector))
        for n, detector in enumerate(detectors or range(1, count + 1))
    ]
    if frame is not None:
        return [frames[frame - 1]]
    if windows and len(set(windows)) > 1:
        window = _photopeak_window(header, sorted(set(windows)))
        frames = [one for one in frames if windows[one.number - 1] == window]
    if len(frames) > 2:
        raise DataError(
            f"has {len(frames)} frames, not one or two views; "
            "name the frame to use in the manifest's 'frame'"
        )
    return frames


def _vector(header: Dataset, keyword: str, count: int) -> list[int]:
    value = header.get(keyword)
    if value is None or value == "":
        return []
    values = [value] if isinstance(value, int) else [int(one) for one in value]
    if len(values) != count:
        raise DataError(f"{keyword} has {len(values)} entries for {count} frames")
    return values


def _item(header: Dataset, keyword: str, number: int) -> Dataset:
    """Item `number` (from 1) of a sequence, or an empty data set."""
    items = header.get(keyword) or []
    return items[number - 1] if 1 <= number <= len(items) else Dataset()


def _window_limits(header: Dataset, window: int) -> list[tuple[float, float]]:
    item = _item(header, "EnergyWindowInformationSequence", window)
    ranges = item.get("EnergyWindowRangeSequence") or []
    limits = [
        (one.get("EnergyWindowLowerLimit"), one.get("EnergyWindowUpperLimit")) for one in ranges
    ]
    return [
        (float(low), float(high)) for low, high in limits if low is not None and high is not None
    ]


def _photopeak_window(header: Dataset, windows: list[int]) -> int:
    """The energy window around 140.5 keV; where several hold it, the one best centred on it."""
    distances = {}
    for window in windows:
        for low, high in _window_limits(header, window):
            if low <= TC99M_PHOTOPEAK_KEV <= high:
                distance = abs((low + high) / 2 - TC99M_PHOTOPEAK_KEV)
                distances[window] = min(distance, distances.get(window, distance))
    if not distances:
        raise DataError(
            f"has {len(windows)} energy windows, none of them known to hold "
            f"{TC99M_PHOTOPEAK_KEV} keV; name the frame to use in the manifest's 'frame'"
        )
    return min(distances, key=lambda window: (distances[window], window))


def _named(header: Dataset, frame: _Frame, view: str | None, alone: bool) -> FrameView:
    """The first rule that names the frame's view, after all rules were heard for contradiction."""
    opinions = list(_opinions(header, frame, view, alone))
    if len({name for _, name in opinions}) > 1:
        said = ", ".join(f"{rule} says {name}" for rule, name in opinions)
        raise DataError(f"frame {frame.number}: {said}; correct the file or the manifest")
    rule, name = opinions[0] if opinions else ("none", UNKNOWN)
    return FrameView(frame.number, name, rule)


def _opinions(
    header: Dataset, frame: _Frame, view: str | None, alone: bool
) -> Iterator[tuple[str, str]]:
    coded = _coded_view(frame.detector_item)
    if coded:
        yield "coded view", coded
    private = _ge_view(header, frame.number, alone)
    if private:
        yield "GE private text", private
    texts = [frame.detector_item.get("ViewPosition")]
    if alone:
        texts += [header.get(field) for field in _TEXT_FIELDS]
    described = _view_in(" | ".join(str(text) for text in texts if text))
    if described:
        yield "description text", described
    turned = _view_by_angle(header, frame.detector)
    if turned:
        yield "start angle", turned
    if view:
        yield "manifest", view


def _coded_view(detector_item: Dataset) -> str | None:
    for item in detector_item.get("ViewCodeSequence") or []:
        name = _CODES.get(str(item.get("CodeValue") or item.get("LongCodeValue") or "").strip())
        return name or _view_in(str(item.get("CodeMeaning") or ""))
    return None


def _ge_view(header: Dataset, number: int, alone: bool) -> str | None:
    """GE Genie names a view in its data set and picture names: ANT or _E, POS, POST or _F."""
    try:
        block = header.private_block(_GE_GROUP, _GE_CREATOR)
    except KeyError:
        return None
    found = set()
    for element in _GE_ELEMENTS:
        if element not in block:
            continue
        value = block[element].value
        values = [value] if isinstance(value, str) else [str(one) for one in value or []]
        if alone or len(values) == _frame_count(header):
            found.add(_ge_name(values[0 if alone else number - 1]) if values else None)
    found.discard(None)
    if len(found) > 1:
        raise DataError(f"frame {number}: GE private text says both anterior and posterior")
    return found.pop() if found else None


def _ge_name(text: str) -> str | None:
    named = _view_in(text)
    if named:
        return named
    suffix = text.strip().upper()[-2:]
    return {"_E": ANTERIOR, "_F": POSTERIOR}.get(suffix)


def _view_by_angle(header: Dataset, detector: int) -> str | None:
    """The view by StartAngle, where two detectors face each other, one above the patient.

    One angle alone decides nothing: it is often left at 0.
    """
    angles = [item.get("StartAngle") for item in header.get("DetectorInformationSequence") or []]
    if len(angles) != 2 or any(angle in (None, "") for angle in angles):
        return None
    names = [_facing(float(angle)) for angle in angles]
    return names[detector - 1] if set(names) == set(_ANGLES) and detector in (1, 2) else None


def _facing(angle: float) -> str | None:
    for name, expected in _ANGLES.items():
        if abs((angle - expected + 180) % 360 - 180) <= _ANGLE_TOLERANCE:
            return name
    return None


def _view_in(text: str) -> str | None:
    """The view that a text names, or None where it names both or neither."""
    anterior, posterior = _ANTERIOR_WORD.search(text), _POSTERIOR_WORD.search(text)
    if bool(anterior) == bool(posterior):
        return None
    return ANTERIOR if anterior else POSTERIOR


def _assume_missing(frames: list[_Frame], named: list[FrameView]) -> tuple[FrameView, ...]:
    missing = [n for n, one in enumerate(named) if one.name == UNKNOWN]
    if not missing:
        return tuple(named)
    if len(named) == 1:
        note = "view unknown: no rule names it; give it in the manifest's 'view'"
        return (FrameView(named[0].frame, UNKNOWN, "none", (note,)),)
    if len(missing) == 1:
        lone = missing[0]
        name = _OPPOSITE[named[1 - lone].name]
        note = "view assumed to be opposite to the file's other view"
        named[lone] = FrameView(named[lone].frame, name, "opposite detector", (note,))
        return tuple(named)
    note = "view assumed from detector order: detector 1 anterior, detector 2 posterior"
    if {one.detector for one in frames} != {1, 2}:
        raise DataError("two frames that nothing tells apart; add 'frame' and 'view' rows for them")
    names = {1: ANTERIOR, 2: POSTERIOR}
    return tuple(
        FrameView(one.number, names[one.detector], "detector order", (note,)) for one in frames
    )
