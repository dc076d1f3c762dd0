import random
from dataclasses import replace

import pytest

from tfds_builder.classes import PUBLISHED
from tfds_builder.commandline.errors import UserError
from tfds_builder.shards.proof import prove_disjoint
from tfds_builder.splits import shares_of
from tfds_builder.studies.quality import Quality
from tfds_builder.studies.study import Facts

AN_IMAGE = Facts(
    row=2,
    file=2,
    frame=1,
    nth=1,
    image_id="",
    patient_key="",
    study_key="",
    site_key="",
    label="",
    view="anterior",
    view_rule="coded view",
    notes=(),
    findings=(),
    pixel_spacing_mm=2.4,
    scale=5.0,
    sex="F",
    age_band="50-59",
    manufacturer="GE",
    counts_ratio=1.0,
    quality=Quality(400_000, 1.0, ()),
    signature=b"",
    patient_digest=b"",
)


def images(folds: int | None = None, sites: int = 0) -> dict[str, list[Facts]]:
    """Split -> images, two each of sixty patients."""
    draw = random.Random(3)
    by_split: dict[str, list[Facts]] = {split: [] for split in shares_of(folds)}
    for n in range(60):
        patient = replace(
            AN_IMAGE,
            patient_key=f"p{n}",
            study_key=f"s-{n}",
            site_key=f"site-{n % sites}" if sites else "",
            label=draw.choice(PUBLISHED),
        )
        own = draw.choice(list(by_split.values()))
        own += [replace(patient, image_id=f"s-{n}-{view}") for view in ("anterior", "posterior")]
    return by_split


def test_the_proof_counts_what_there_is():
    by_split = images()
    proof = prove_disjoint(by_split, PUBLISHED)
    assert sum(found["images"] for found in proof["splits"].values()) == 120
    for split, found in proof["splits"].items():
        own = by_split[split]
        assert found["patients"] == len({image.patient_key for image in own})
        assert found["images_by_class"] == {k: sum(i.label == k for i in own) for k in PUBLISHED}
    assert all(
        shared == {"patients": 0, "studies": 0, "images": 0}
        for shared in proof["intersections"].values()
    )
    assert len(proof["intersections"]) == 3


def test_the_proof_knows_folds_and_sites():
    by_split = images(folds=4, sites=3)
    proof = prove_disjoint(by_split, PUBLISHED)
    assert list(proof["splits"]) == [f"fold_{n}" for n in range(4)]
    assert len(proof["intersections"]) == 6
    for split, found in proof["splits"].items():
        own = {(image.patient_key, image.site_key) for image in by_split[split]}
        assert found["patients_by_site"] == {
            f"site-{n}": sum(site == f"site-{n}" for _, site in own) for n in range(3)
        }
    assert "patients_by_site" not in prove_disjoint(images(), PUBLISHED)["splits"]["train"]


@pytest.mark.parametrize("field", ["patient_key", "study_key", "image_id"])
def test_anything_shared_by_two_splits_is_refused(field):
    by_split = images()
    shared = getattr(by_split["test"][0], field)
    by_split["train"][0] = replace(by_split["train"][0], **{field: shared})
    with pytest.raises(UserError, match=r"share|twice"):
        prove_disjoint(by_split, PUBLISHED)
