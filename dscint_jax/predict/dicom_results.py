"""Results as DICOM objects that a PACS files with the study they are of.

In: what was said of a study, its maps, and its own DICOM files. Out: a Structured Report by
template TID 1500 (DICOM PS3.16) with references to the frames that were read, and a Secondary
Capture that shows the views with the map over them. Both say that they are for research. Needs
highdicom (extra `dicom`).
"""

import hashlib
import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pydicom
from jaxtyping import Float, UInt8
from PIL import Image as Picture
from PIL import ImageDraw
from pydicom.config import RAISE
from pydicom.datadict import dictionary_VM
from pydicom.dataelem import DataElement
from pydicom.uid import ExplicitVRLittleEndian, NuclearMedicineImageStorage, generate_uid

from dscint_jax.explain.maps import Explained, resize
from dscint_jax.predict.answers import Answer, Verdict
from dscint_jax.predict.networks import Networks, Said
from dscint_jax.predict.page import scans_of
from dscint_jax.predict.sources import EMPTY_WHERE_UNKNOWN, UIDS, UNICODE
from dscint_jax.report.tables import plain
from tfds_builder.commandline.command import installed_version
from tfds_builder.commandline.errors import UserError

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept

RESEARCH = "For research use only. Not for diagnosis."
NAME = "dscint-jax"
VERSION = installed_version(NAME) or "unknown"
SERIES = f"{NAME}: {RESEARCH}"
"""SeriesDescription of all that is made here, by which it is known when it comes back."""

SCHEME = "99DSCINT"
"""The coding scheme of what no standard code is given for here."""

STANDARD_CODES = {
    "normal": ("17621005", "SCT", "Normal"),
    "metastasis": ("94222008", "SCT", "Bony metastasis"),
}
"""SNOMED CT, as pydicom's dictionary of DICOM's context groups has it."""

CODE_LETTERS, MEANING_LETTERS = 16, 64
"""The longest that a code's value and its meaning may be (SH and LO of PS3.5)."""

MARGIN = 4
"""Pixels between the banner's text and its edges."""

REPORT_SERIES, PICTURE_SERIES = 9001, 9002
WHITE = 1.2
"""The normalised pixel that is drawn black; dark is many counts."""


def dicom_results(
    answer: Answer,
    explained: Sequence[Explained],
    networks: Networks,
    *,
    deidentified: bool = False,
) -> dict[str, bytes]:
    """The report and the picture of a study, as DICOM files; none of one that is no DICOM study.

    Raises:
      UserError: its header lacks what they need, or holds what no object made anew may have.
    """
    said, verdict = answer.said, answer.verdict
    assert said
    assert verdict
    if isinstance(answer.sources, UserError):
        raise answer.sources
    files = answer.files
    if not all(path in answer.sources for path in files):
        return {}
    sources = [answer.sources[path] for path in files]
    frames = [(files.index(answer.study.files[image.row]), image.frame) for image in said.facts]
    if deidentified:
        sources, frames = [without_identity(sources)], []
    network = f"{networks.identity}; least confidence {verdict.least}; {NAME} {VERSION}"
    # Names of files say nothing where the objects go.
    remarks = answer.to_look_at(named=False)
    pixels = picture_of(said, explained, verdict, remarks)
    try:
        made = report(
            sources, frames, said.probabilities, verdict, networks.classes, network, remarks
        )
        picture = capture(sources, pixels, network)
        return {"report": _part_10(made), "picture": _part_10(picture)}
    except (AttributeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"has a header that does not allow them: {reason}") from error


def _part_10(dataset: pydicom.Dataset) -> bytes:
    """A DICOM object as a file; ValueError names the element whose value is none of its type."""
    for element in dataset:
        try:
            DataElement(element.tag, element.VR, element.value, validation_mode=RAISE)
        except ValueError:
            raise ValueError(f"{element.keyword} has a value that is none of its type") from None
        if element.VM > 1 and dictionary_VM(element.tag) == "1":
            raise ValueError(f"{element.keyword} has several values")
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    return content.getvalue()


def without_identity(sources: Sequence[pydicom.Dataset]) -> pydicom.Dataset:
    """A header that stands for a study, for results that name neither it nor its patient.

    Its UIDs are random: one that were derived from those of the study would be found by whoever has
    them. Of the study it has whether text is burned into its pixels, and nothing else.
    """
    header = pydicom.Dataset()
    header.SpecificCharacterSet = UNICODE
    header.SOPClassUID = NuclearMedicineImageStorage
    for name in UIDS:
        setattr(header, name, generate_uid(prefix=None))
    for name in EMPTY_WHERE_UNKNOWN:
        setattr(header, name, "")
    header.PatientIdentityRemoved = "YES"
    header.DeidentificationMethod = "Made anew: nothing of patient, study or source was taken over"
    header.BurnedInAnnotation = _burned_in(sources)
    return header


def report(
    sources: Sequence[pydicom.Dataset],
    frames: Sequence[tuple[int, int]],
    probabilities: Float[np.ndarray, " classes"],
    verdict: Verdict,
    classes: Sequence[str],
    network: str,
    remarks: Sequence[str] = (),
) -> pydicom.Dataset:
    """The Structured Report of a study.

    Args:
      sources: headers of its files.
      frames: (which of the sources, frame from 1) of every image that was read; none where the
        sources must not be named.
      probabilities: of the classes.
      verdict: what comes of them.
      classes: names.
      network: what read it, in words: all that the answer depends on beside the sources.
      remarks: what has to be looked at.
    """
    from highdicom import sr
    from pydicom.sr.codedict import codes

    algorithm = sr.AlgorithmIdentification(
        name=NAME,
        version=VERSION,
        parameters=[network[:1024], RESEARCH],
        family=codes.DCM.ArtificialIntelligence,
    )
    said = (
        _private("No answer: not sure enough")
        if verdict.abstains
        else sr.CodedConcept(*STANDARD_CODES[verdict.label])
        if verdict.label in STANDARD_CODES
        else _private(plain(verdict.label))
    )
    read: dict[int, list[int]] = {}
    for source, frame in frames:
        read.setdefault(source, []).append(frame)
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=_uid(sources, network, "finding"), identifier="whole-body bone scintigram"
        ),
        algorithm_id=algorithm,
        measurements=[
            sr.Measurement(
                name=_private(f"Probability of {plain(label)}"),
                value=float(p),
                unit=codes.UCUM.NoUnits,
            )
            for label, p in zip(classes, probabilities, strict=True)
        ],
        finding_type=said,
        source_images=[
            sr.SourceImageForMeasurementGroup(
                sources[n].SOPClassUID,
                sources[n].SOPInstanceUID,
                own if int(sources[n].get("NumberOfFrames") or 1) > 1 else None,
            )
            for n, own in sorted(read.items())
        ],
    )
    for remark in remarks:
        item = sr.TextContentItem(codes.DCM.Comment, remark, sr.RelationshipTypeValues.CONTAINS)
        group[0].ContentSequence.append(item)
    device = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=_uid([], NAME, VERSION), name=NAME, manufacturer_name=NAME, model_name=NAME
        ),
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=device),
        procedure_reported=sr.CodedConcept("42175-0", "LN", "Radionuclide scan of whole body"),
        imaging_measurements=[group],
    )
    made = sr.EnhancedSR(
        evidence=[sources[n] for n in sorted(read)] or sources,
        content=content,
        series_instance_uid=_uid(sources, network, "report series"),
        series_number=REPORT_SERIES,
        sop_instance_uid=_uid(sources, network, "report"),
        instance_number=1,
        manufacturer=NAME,
        series_description=SERIES,
    )
    if not read:
        del made.CurrentRequestedProcedureEvidenceSequence
    return made


def capture(
    sources: Sequence[pydicom.Dataset],
    picture: UInt8[np.ndarray, "rows columns 3"],
    network: str,
) -> pydicom.Dataset:
    """The Secondary Capture of a study: a picture, filed with it."""
    from highdicom.sc import SCImage

    made = SCImage.from_ref_dataset(
        sources[0],
        pixel_array=picture,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),
        series_instance_uid=_uid(sources, network, "picture series"),
        series_number=PICTURE_SERIES,
        sop_instance_uid=_uid(sources, network, "picture"),
        instance_number=1,
        manufacturer=NAME,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    # The views beside each other have not one orientation.
    made.add_new("PatientOrientation", "CS", "")
    made.add_new("Laterality", "CS", "")
    made.SeriesDescription = SERIES
    made.BurnedInAnnotation = _burned_in(sources)
    for name in ("PatientIdentityRemoved", "DeidentificationMethod"):
        if name in sources[0]:
            setattr(made, name, sources[0][name].value)
    return made


def picture_of(
    said: Said, explained: Sequence[Explained], verdict: Verdict, remarks: Sequence[str] = ()
) -> UInt8[np.ndarray, "rows columns 3"]:
    """The views beside each other, the last of the maps over them in red, below a banner of text.

    The banner is as high as the answer and the remarks need.
    """
    drawn = []
    for scans, item in zip(scans_of(said), explained, strict=True):
        heat = list(item.heat.values())[-1] if item.heat else np.zeros_like(item.views)
        for scan, plane in zip(scans, heat, strict=True):
            grey = 255 * (1 - np.clip(scan / WHITE, 0, 1))
            over = 0.6 * np.sqrt(np.clip(resize(plane, scan.shape), 0, 1))
            red, others = grey + over * (255 - grey), grey * (1 - over)
            drawn.append(np.stack([red, others, others], -1))
    body = np.rint(np.concatenate(drawn, 1)).astype(np.uint8)
    return np.concatenate([_banner(body.shape[1], verdict, remarks), body])


def _banner(
    columns: int, verdict: Verdict, remarks: Sequence[str]
) -> UInt8[np.ndarray, "rows columns 3"]:
    paragraphs = [RESEARCH, verdict.text, f"{NAME} {VERSION}; red: what spoke for it"]
    paragraphs += [f"Look at: {remark}" for remark in remarks]
    drawing = ImageDraw.Draw(Picture.new("RGB", (1, 1)))
    # No letter is wider than this one.
    letters = int((columns - 2 * MARGIN) / drawing.textlength("W"))
    lines = [line for one in paragraphs for line in textwrap.wrap(one, letters)]
    text = "\n".join(lines)
    *_, bottom = drawing.multiline_textbbox((MARGIN, MARGIN), text)
    banner = Picture.new("RGB", (columns, int(bottom) + 2 * MARGIN), "white")
    ImageDraw.Draw(banner).multiline_text((MARGIN, MARGIN), text, fill="black")
    return np.asarray(banner)


def check_writer() -> None:
    """Raises UserError where highdicom is not installed."""
    if installed_version("highdicom") is None:
        raise UserError("--dicom needs highdicom: pip install -c constraints.txt '.[dicom]'")


def _burned_in(sources: Sequence[pydicom.Dataset]) -> str:
    return "YES" if any(s.get("BurnedInAnnotation") == "YES" for s in sources) else "NO"


def _private(meaning: str) -> "CodedConcept":
    """A code of this package's scheme: a digest of its meaning, so that two never share one."""
    from highdicom.sr import CodedConcept

    value = hashlib.sha256(meaning.encode()).hexdigest()[:CODE_LETTERS].upper()
    return CodedConcept(value, SCHEME, meaning[:MEANING_LETTERS])


def _uid(sources: Sequence[pydicom.Dataset], *words: str) -> str:
    """The same UID for the same files, in any order, and words: a result sent twice is one."""
    names = sorted(str(source.SOPInstanceUID) for source in sources)
    return generate_uid(entropy_srcs=["\n".join([*names, *words])])
