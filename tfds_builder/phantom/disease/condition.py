"""What a patient has: lesions, harmless findings, uptakes out of the ordinary, metal on the body.

In: draws of `lesions` and `confounders`, made through a `Chart`. Out: `Condition`.
"""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from tfds_builder.phantom.body.patient import Patient
from tfds_builder.phantom.body.skeleton import Skeleton


@dataclasses.dataclass(frozen=True)
class Focus:
    """A Gaussian focus at a point of the cloud; `sigma_mm` in x, y, z, `offset_mm` from the point.

    `ratio` is the peak over the surroundings in the view that shows it better; of a cold finding,
    what is left of the uptake in its middle.
    """

    point: int
    sigma_mm: tuple[float, float, float]
    ratio: float
    offset_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One lesion (number from 1) or one harmless finding (number 0); a cold one lacks uptake.

    `study` is the only study that shows it, or None where all do.
    """

    kind: str
    site: str
    foci: tuple[Focus, ...]
    number: int = 0
    cold: bool = False
    study: int | None = None

    def scaled(self, contrast: float, size: float = 1.0) -> "Finding":
        """The same with the contrast (ratio less one) and the size of its foci multiplied."""
        foci = tuple(
            dataclasses.replace(
                focus,
                ratio=max(float(1 + (focus.ratio - 1) * contrast), 0.0),
                sigma_mm=tuple(float(sigma * size) for sigma in focus.sigma_mm),
            )
            for focus in self.foci
        )
        return dataclasses.replace(self, foci=foci)


@dataclasses.dataclass(frozen=True)
class Shade:
    """Metal in front of the body, in the anterior view: half sizes and offset in x and z, mm."""

    kind: str
    point: int
    half_mm: tuple[float, float]
    transmission: float
    offset_mm: tuple[float, float] = (0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Condition:
    """All findings, metal, and factors on the uptake of structures (by name) and of soft tissue."""

    label: str
    findings: tuple[Finding, ...]
    factors: dict[str, float]
    shades: tuple[Shade, ...]
    soft_factor: float
    bladder_size: float


class Chart:
    """Collects what is drawn of one patient, one finding after another."""

    def __init__(self, skeleton: Skeleton, patient: Patient, rng: np.random.Generator) -> None:
        self.skeleton = skeleton
        self.patient = patient
        self.rng = rng
        self.findings: list[Finding] = []
        self.factors: dict[str, float] = {}
        self.shades: list[Shade] = []

    def chance(self, rate: float) -> bool:
        """True with that probability."""
        return bool(self.rng.random() < rate)

    def uniform(self, low: float, high: float) -> float:
        """A number between the two."""
        return float(self.rng.uniform(low, high))

    def spread(self, median: float, sigma: float, low: float, high: float) -> float:
        """A log-normal number, kept between `low` and `high`."""
        return float(np.clip(median * np.exp(self.rng.normal(0, sigma)), low, high))

    def side(self) -> str:
        """Left or right."""
        return "left" if self.chance(0.5) else "right"

    def sided(self, name: str) -> str:
        """The structure of that name, on either side where it is one of a pair."""
        return name if name in self.skeleton.index else f"{name}_{self.side()}"

    def scale(self, name: str, factor: float) -> None:
        """Multiplies the uptake of a structure."""
        self.factors[name] = self.factors.get(name, 1.0) * factor

    def part(self, name: str) -> np.ndarray:
        """Reference points of a structure, shape (n, 3), mm."""
        structure = self.skeleton.named(name)
        return self.skeleton.points[structure.start : structure.stop]

    def point(self, name: str, keep: Callable[[np.ndarray], np.ndarray] | None = None) -> int:
        """Any point of a structure, of those that `keep` tells of its points (n, 3)."""
        choice = np.arange(len(self.part(name)))
        if keep is not None:
            choice = choice[keep(self.part(name))]
        return self.skeleton.named(name).start + int(self.rng.choice(choice))

    def nearest(self, name: str, place: Iterable[float]) -> int:
        """The point of a structure that is nearest to a place of the reference body, mm."""
        gap = np.linalg.norm(self.part(name) - np.asarray(tuple(place)), axis=1)
        return self.skeleton.named(name).start + int(gap.argmin())

    def along(self, name: str, share: float) -> int:
        """The point of a structure at this share of its length from its upper end."""
        z = self.part(name)[:, 2]
        level = z.min() + share * (z.max() - z.min())
        return self.skeleton.named(name).start + int(np.abs(z - level).argmin())

    def chain(
        self, name: str, anchor: int, extra: int, size: float, ratio: float
    ) -> tuple[Focus, ...]:
        """A focus at `anchor` and up to `extra` more on the same structure, close to it."""
        gap = np.linalg.norm(self.part(name) - self.skeleton.points[anchor], axis=1)
        near = self.skeleton.named(name).start + np.flatnonzero(
            (gap > 0.8 * size) & (gap < 2.2 * size)
        )
        chosen = [anchor]
        if extra and len(near):
            chosen += [int(p) for p in self.rng.choice(near, extra)]
        height = 1 + (ratio - 1) / len(chosen) ** 0.5
        spread = self.rng.uniform(0.8, 1.25, (len(chosen), 3)) * size
        return tuple(
            Focus(point, (float(x), float(y), float(z)), float(height))
            for point, (x, y, z) in zip(chosen, spread, strict=True)
        )

    def lesion(self, kind: str, site: str, foci: tuple[Focus, ...], cold: bool = False) -> None:
        """Adds a true lesion under the next number."""
        number = 1 + sum(finding.number > 0 for finding in self.findings)
        self.findings.append(Finding(kind, site, foci, number, cold))

    def harmless(
        self, kind: str, site: str, *foci: Focus, cold: bool = False, study: int | None = None
    ) -> None:
        """Adds a finding that is no lesion."""
        self.findings.append(Finding(kind, site, foci, 0, cold, study))

    def spot(self, name: str, size: float, ratio: float) -> Focus:
        """A round focus at any point of a structure."""
        return self.chain(name, self.point(name), 0, size, ratio)[0]

    def has_lesion(self, names: Iterable[str]) -> bool:
        """True where one of these structures has a true lesion."""
        return not {f.site for f in self.findings if f.number}.isdisjoint(names)
