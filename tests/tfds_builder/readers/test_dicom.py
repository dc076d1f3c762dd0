import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import get_decoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from tfds_builder.commandline.errors import UserError
from tfds_builder.readers import dicom
from tfds_builder.readers.views import SAME_AGAIN


def scintigram_of(path, **options):
    return dicom.read_dicom(path.read_bytes(), **options)


def views_of(path, **options):
    return scintigram_of(path, **options).views


def error_of(path, **options):
    with pytest.raises(UserError) as caught:
        scintigram_of(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def counts_of(rng, frames, rows=1024, columns=256, dtype=np.uint16):
    return rng.poisson(2.0, (frames, rows, columns)).astype(dtype)


def test_coded_views_decide_and_counts_come_through_unchanged(write_dicom, rng):
    counts = counts_of(rng, 2)
    scintigram = scintigram_of(write_dicom(counts=counts, views=("posterior", "anterior")))
    views = scintigram.views
    assert [(v.frame, v.name, v.rule) for v in views] == [
        (1, "posterior", "coded view"),
        (2, "anterior", "coded view"),
    ]
    for view, native in zip(views, counts, strict=True):
        np.testing.assert_array_equal(view.native, native)
        assert view.notes == ()
    assert (scintigram.frames, scintigram.pixel_spacing_mm) == (2, 2.4)
    assert scintigram.counts_ratio == 1


def test_nema_nm1_is_read_as_an_anterior_scan_with_all_its_counts(nema_nm1):
    scintigram = scintigram_of(nema_nm1)
    (view,) = scintigram.views
    assert int(view.native.sum()) == 3_596_452
    assert (view.name, view.rule, view.notes) == ("anterior", "GE private text", ())
    assert scintigram.pixel_spacing_mm == pytest.approx(2.26)
    assert scintigram.counts_ratio == 1


def test_the_header_tells_what_the_record_needs(write_dicom):
    header = dicom.read_header(write_dicom(PatientSex="M", PatientAge="011M").read_bytes())
    assert (header.sex, header.age, header.patient_id) == ("M", 0, "H-0001")
    assert header.manufacturer == "SIEMENS NM"
    born = write_dicom(PatientAge=None, PatientBirthDate="19601225", StudyDate="20201224")
    assert dicom.read_header(born.read_bytes()).age == 59


@pytest.mark.parametrize(
    "written, read",
    [
        ("Anonymous", ""),
        ("ANON", ""),
        ("anonymized^patient ", ""),
        ("n/a", ""),
        ("?", ""),
        ("ANON-0042", "ANON-0042"),
        ("Canon", "Canon"),
    ],
)
def test_a_patient_id_that_names_nobody_is_none(write_dicom, written, read):
    path = write_dicom(PatientID=written)
    assert dicom.read_header(path.read_bytes()).patient_id == read
    assert scintigram_of(path).patient_id == read


def test_detector_vector_says_which_detector_a_frame_is_of(write_dicom):
    path = write_dicom(views=("anterior", "posterior"), DetectorVector=[2, 1])
    assert [view.name for view in views_of(path)] == ["posterior", "anterior"]


def window(low, high):
    limits, item = Dataset(), Dataset()
    limits.EnergyWindowLowerLimit, limits.EnergyWindowUpperLimit = low, high
    item.EnergyWindowRangeSequence = [limits]
    return item


def test_of_two_energy_windows_the_photopeak_is_taken(write_dicom, rng):
    counts = counts_of(rng, 4)
    path = write_dicom(
        counts=counts,
        EnergyWindowVector=[1, 1, 2, 2],
        DetectorVector=[1, 2, 1, 2],
        EnergyWindowInformationSequence=[window(92, 125), window(126, 154)],
    )
    views = views_of(path)
    assert [(view.frame, view.name) for view in views] == [(3, "anterior"), (4, "posterior")]
    np.testing.assert_array_equal(views[0].native, counts[2])


def test_two_windows_of_unknown_energy_are_not_guessed(write_dicom, rng):
    path = write_dicom(
        counts=counts_of(rng, 4), EnergyWindowVector=[1, 1, 2, 2], DetectorVector=[1, 2, 1, 2]
    )
    assert "140.5 keV" in error_of(path)
    (view,) = views_of(path, frame=4)
    assert (view.frame, view.name) == (4, "posterior")


def test_detector_order_is_an_assumption_that_is_noted(write_dicom):
    views = views_of(write_dicom(views=(None, None)))
    assert [(v.name, v.rule) for v in views] == [
        ("anterior", "detector order"),
        ("posterior", "detector order"),
    ]
    assert all("assumed" in view.notes[0] for view in views)


def test_one_named_view_of_two_names_the_other(write_dicom):
    views = views_of(write_dicom(views=(None, "anterior")))
    assert [(v.name, v.rule) for v in views] == [
        ("posterior", "opposite detector"),
        ("anterior", "coded view"),
    ]


@pytest.mark.parametrize("text, name", [("WB BONE POST", "posterior"), ("ANT wb", "anterior")])
def test_description_text_names_a_lone_view(write_dicom, text, name):
    (view,) = views_of(write_dicom(views=(None,), SeriesDescription=text))
    assert (view.name, view.rule) == (name, "description text")


@pytest.mark.parametrize("text", ["ANT/POST", "posture", "antenna", ""])
def test_text_that_names_both_or_neither_decides_nothing(write_dicom, text):
    (view,) = views_of(write_dicom(views=(None,), SeriesDescription=text))
    assert view.name == "unknown"
    assert "view unknown" in view.notes[0]


@pytest.mark.parametrize(
    "text, name", [("WB_F", "posterior"), ("POST", "posterior"), ("x_E", "anterior")]
)
def test_ge_private_text_names_a_view(write_dicom, text, name):
    def add(dataset):
        block = dataset.private_block(0x0011, "GEMS_GENIE_1", create=True)
        block.add_new(0x30, "LO", text)

    (view,) = views_of(write_dicom(views=(None,), change=add))
    assert (view.name, view.rule) == (name, "GE private text")


def with_angles(*angles):
    def change(dataset):
        for detector, angle in zip(dataset.DetectorInformationSequence, angles, strict=True):
            detector.StartAngle = angle

    return change


def test_detectors_that_face_each_other_name_their_views_by_their_angles(write_dicom):
    views = views_of(write_dicom(views=(None, None), change=with_angles("180", "359")))
    assert [(view.name, view.rule) for view in views] == [
        ("anterior", "start angle"),
        ("posterior", "start angle"),
    ]


@pytest.mark.parametrize("angles", [("0", "0"), ("0", "90"), ("45", "225")])
def test_other_angles_name_no_view(write_dicom, angles):
    views = views_of(write_dicom(views=(None, None), change=with_angles(*angles)))
    assert {view.rule for view in views} == {"detector order"}


def test_the_manifest_names_a_view_that_the_file_does_not(write_dicom):
    (view,) = views_of(write_dicom(views=(None,)), view="posterior")
    assert (view.name, view.rule) == ("posterior", "manifest")


def test_what_contradicts_the_manifest_is_a_finding_that_names_both(write_dicom):
    (view,) = views_of(write_dicom(views=("anterior",)), view="posterior")
    assert (view.name, view.rule) == ("posterior", "manifest")
    assert view.findings == ("coded view says anterior, manifest posterior",)


def test_the_same_view_twice_is_an_error(write_dicom):
    path = write_dicom(views=("anterior", "anterior"))
    message = error_of(path)
    assert "anterior of frame 1, anterior of frame 2" in message
    assert "'frame' and 'view'" in message
    assert [v.name for v in views_of(path, frame=2, view="posterior")] == ["posterior"]
    (named,) = views_of(path, frame=2)
    assert (named.name, named.findings) == (
        "anterior",
        (SAME_AGAIN, "detector order says posterior, coded view anterior"),
    )


def test_a_manifest_view_for_two_frames_asks_for_the_frame(write_dicom):
    assert "add a row with 'frame'" in error_of(write_dicom(), view="anterior")
    assert "frame 3" in error_of(write_dicom(), frame=3)


@pytest.mark.parametrize("kind", ["TOMO", "RECON TOMO", "GATED", "DYNAMIC"])
def test_what_is_not_planar_is_refused(write_dicom, kind):
    assert kind in error_of(write_dicom(ImageType=["ORIGINAL", "PRIMARY", kind, "EMISSION"]))


@pytest.mark.parametrize("kind", [None, ["ORIGINAL", "PRIMARY"], ["DERIVED", "PRIMARY", "STATIC"]])
def test_planar_or_unstated_image_types_are_read(write_dicom, kind):
    assert len(views_of(write_dicom(ImageType=kind))) == 2


@pytest.mark.parametrize(
    "sop_class", ["1.2.840.10008.5.1.4.1.1.5", "1.2.840.10008.5.1.4.1.1.7", None]
)
def test_the_classes_in_use_are_read(write_dicom, sop_class):
    assert len(views_of(write_dicom(SOPClassUID=sop_class))) == 2


def test_other_objects_are_refused_by_name(write_dicom):
    assert "CT Image Storage" in error_of(write_dicom(SOPClassUID="1.2.840.10008.5.1.4.1.1.2"))
    path = write_dicom(SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Modality="OT")
    assert "Modality OT" in error_of(path)


def test_inverted_pixels_are_turned_back(write_dicom, rng):
    counts = counts_of(rng, 2)
    stored = (np.uint16(65535) - counts).astype(np.uint16)
    path = write_dicom(
        counts=stored, PhotometricInterpretation="MONOCHROME1", CountsAccumulated=int(counts.sum())
    )
    views = views_of(path)
    np.testing.assert_array_equal(views[0].native, counts[0])
    assert views[0].notes == ("MONOCHROME1 inverted",)


def test_inverted_display_of_true_counts_is_told_by_their_sum(write_dicom, rng):
    counts = counts_of(rng, 2)
    views = views_of(write_dicom(counts=counts, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(views[1].native, counts[1])
    assert "not inverted" in views[1].notes[0]


def test_signed_counts_are_read_and_negative_ones_refused(write_dicom, rng):
    counts = counts_of(rng, 2, dtype=np.int16)
    np.testing.assert_array_equal(views_of(write_dicom(counts=counts))[0].native, counts[0])
    counts[1, 3, 4] = -7
    assert "lowest -7" in error_of(write_dicom(counts=counts))


def test_rescaling_is_applied_and_rounding_is_noted(write_dicom, rng):
    counts = counts_of(rng, 2)
    doubled = views_of(write_dicom(counts=counts, RescaleSlope=2, RescaleIntercept=1))
    np.testing.assert_array_equal(doubled[0].native, counts[0] * 2 + 1)
    halved = views_of(write_dicom(counts=counts, RescaleSlope="0.4", RescaleIntercept=0))
    assert "rescaled and rounded to whole counts" in halved[0].notes
    np.testing.assert_array_equal(halved[0].native, np.rint(counts[0] * 0.4))
    assert "unusable RescaleSlope" in error_of(write_dicom(RescaleSlope=0))


@pytest.mark.parametrize("value", [None, "", [0, 0], [2.4, float("nan")]])
def test_a_missing_pixel_spacing_is_noted(write_dicom, value):
    def change(dataset):
        dataset["PixelSpacing"].value = "" if value is None else value

    scintigram = scintigram_of(write_dicom(change=change))
    assert np.isnan(scintigram.pixel_spacing_mm)
    assert "pixel spacing unknown" in scintigram.views[0].notes


def test_the_sum_is_compared_with_counts_accumulated(write_dicom, rng):
    counts = counts_of(rng, 2)
    path = write_dicom(counts=counts, CountsAccumulated=2 * int(counts.sum()))
    assert scintigram_of(path).counts_ratio == 0.5
    assert np.isnan(scintigram_of(write_dicom(CountsAccumulated=None)).counts_ratio)


def test_another_matrix_is_read_as_it_is(write_dicom, rng):
    for rows, columns in ((2048, 512), (512, 128), (1000, 333)):
        counts = counts_of(rng, 2, rows, columns)
        np.testing.assert_array_equal(views_of(write_dicom(counts=counts))[1].native, counts[1])


def test_eight_bit_files_are_read(write_dicom, rng):
    counts = counts_of(rng, 2, dtype=np.uint8)
    np.testing.assert_array_equal(views_of(write_dicom(counts=counts))[1].native, counts[1])


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_lossless_compression_keeps_every_count(write_dicom, rng, syntax):
    counts = counts_of(rng, 2)
    views = views_of(write_dicom(counts=counts, change=lambda d: d.compress(syntax)))
    np.testing.assert_array_equal([view.native for view in views], counts)
    assert views[0].notes == ()


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_every_uncompressed_syntax_is_read(write_dicom, rng, syntax):
    counts = counts_of(rng, 2)

    def change(dataset):
        dataset.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = counts.astype(">u2").tobytes()
            dataset["PixelData"].VR = "OW"

    views = views_of(write_dicom(counts=counts, change=change))
    np.testing.assert_array_equal([view.native for view in views], counts)


def test_a_size_beyond_the_cap_is_refused_before_decoding(write_dicom):
    def claim(dataset):
        dataset.Rows = dataset.Columns = 60_000

    assert "60000x60000x2 pixels" in error_of(write_dicom(change=claim))


@pytest.mark.parametrize("content", [b"", b"path,label\n", b"\x00" * 128 + b"DICM", b"\x89PNG\r\n"])
def test_what_is_no_dicom_file_is_named(tmp_path, content):
    path = tmp_path / "x.dcm"
    path.write_bytes(content)
    error_of(path)


def test_a_truncated_file_is_named(write_dicom):
    path = write_dicom()
    for size in (500_000, 1500, 700, 300, 140):
        path.write_bytes(path.read_bytes()[:size])
        error_of(path)


def test_reasons_repeat_nothing_of_the_header(write_dicom):
    name = "Doe^Jane"
    for elements in (
        {"ImageType": ["ORIGINAL", "PRIMARY", name, "EMISSION"]},
        {"Modality": name, "SOPClassUID": None},
        {"SOPClassUID": "1.2.3.4"},
        {"PhotometricInterpretation": name},
    ):
        message = error_of(write_dicom(**elements))
        assert name not in message
        assert "1.2.3.4" not in message


def test_a_square_matrix_is_refused_unless_a_person_accepts_it(write_dicom, rng):
    square = write_dicom(counts=counts_of(rng, 2, 512, 512))
    message = error_of(square)
    assert "512x512" in message
    assert "'accept'" in message
    for view in views_of(square, accept=True):
        (finding,) = view.findings
        assert finding.startswith("taken by the manifest's 'accept'")
        assert "512x512" in finding


def test_accept_takes_what_a_rule_of_thumb_is_against_and_nothing_unsafe(write_dicom, rng):
    odd = write_dicom(ImageType=["ORIGINAL", "PRIMARY", "SPOT", "EMISSION"])
    assert "special acquisition" in error_of(odd)
    assert len(views_of(odd, accept=True)) == 2
    many = write_dicom(counts=counts_of(rng, 13, 128, 64), views=(None,))
    assert "13 frames" in error_of(many, frame=4, view="anterior")
    assert len(views_of(many, frame=4, view="anterior", accept=True)) == 1
    for elements in (
        {"BurnedInAnnotation": "YES"},
        {"ImageType": ["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"]},
    ):
        error_of(write_dicom(**elements), accept=True)


def test_words_of_a_camera_test_are_a_finding_that_repeats_none_of_them(write_dicom):
    for view in views_of(write_dicom(SeriesDescription="Doe^Jane Intrinsic FLOOD")):
        assert view.findings == (dicom.SOURCE_WORDS,)


def test_text_burned_into_the_pixels_is_refused(write_dicom):
    assert "BurnedInAnnotation" in error_of(write_dicom(BurnedInAnnotation="YES"))


def test_a_data_set_without_the_file_header_is_read(write_dicom, rng):
    counts = counts_of(rng, 2)
    content = write_dicom(counts=counts).read_bytes()
    dataset = pydicom.dcmread(io.BytesIO(content))
    for implicit in (True, False):
        bare = io.BytesIO()
        dataset.file_meta, dataset.preamble = FileMetaDataset(), None
        dataset.save_as(bare, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        views = dicom.read_dicom(bare.getvalue()).views
        np.testing.assert_array_equal([view.native for view in views], counts)


def test_deflated_data_that_would_fill_the_memory_is_refused(write_dicom):
    def deflate(dataset):
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        dataset.PixelData = bytes(200 * 2**20)

    path = write_dicom(change=deflate)
    assert path.stat().st_size < 2**20
    assert "inflates" in error_of(path)


def test_a_codestream_of_another_size_is_refused_before_it_is_decoded(write_dicom, rng):
    other = write_dicom(counts=counts_of(rng, 1, 600, 200), views=("anterior",))
    dataset = pydicom.dcmread(other)
    dataset.compress(JPEG2000Lossless)
    dataset.Rows, dataset.Columns = 1024, 256
    dataset.save_as(other)
    assert "its codestream says 600x200x1" in error_of(other)


def test_a_colour_capture_is_refused(write_dicom):
    assert "colour" in error_of(write_dicom(SamplesPerPixel=3))


def test_a_missing_decoder_names_the_package_to_install(nema_nm1, monkeypatch):
    decoder = get_decoder("1.2.840.10008.1.2.4.70")
    monkeypatch.setattr(type(decoder), "is_available", property(lambda self: False))
    assert "python-gdcm" in error_of(nema_nm1)


def test_lossy_decoding_to_negative_values_is_refused():
    path = Path(pydicom.__file__).parent / "data" / "test_files" / "JPEG2000.dcm"
    assert "negative" in error_of(path)
