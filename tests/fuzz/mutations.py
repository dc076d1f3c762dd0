"""The nth damaged file of a seed: which sound file, and what is done to it.

In: a seed, a number, and the sound files. Out: the damaged file, which depends on nothing else.
"""

from dataclasses import dataclass
from random import Random

from tests.fuzz.damage_bytes import BYTE_DAMAGE
from tests.fuzz.damage_dicom import DICOM_DAMAGE
from tests.fuzz.damage_pictures import PICTURE_DAMAGE
from tests.fuzz.draft import Draft
from tests.fuzz.seeds import DICOM, Seed

# How often damage of the structure and of the bytes is done to a file, the first kind first.
_STACKS = ((1, 0), (1, 0), (1, 0), (0, 1), (0, 1), (1, 1), (2, 0), (2, 1), (0, 2), (3, 0))


@dataclass(frozen=True)
class Mutant:
    """A damaged file.

    Attributes:
      seed: the sound file.
      damage: what was done to it, in order.
      content: its bytes, which are not the sound file's.
    """

    seed: Seed
    damage: tuple[str, ...]
    content: bytes

    def __str__(self) -> str:
        return f"{self.seed.kind} {self.seed.name}: {', '.join(self.damage)}"


def make_mutant(seed: int, number: int, seeds: tuple[Seed, ...]) -> Mutant:
    """The file of this number."""
    random = Random(f"{seed}/{number}")
    while True:
        source = random.choice(seeds)
        structural, plain = random.choice(_STACKS)
        if source.kind != DICOM:
            structural = min(structural, 1)  # What a second one would look for may be gone.
        damage = random.choices(structural_damage(source), k=structural)
        content = damaged(random, source, damage)
        for name in random.choices(tuple(BYTE_DAMAGE), k=plain):
            content = BYTE_DAMAGE[name](random, content, seeds)
            damage.append(name)
        # Some damage finds nothing to do in some files.
        if content != source.content:
            return Mutant(source, tuple(damage), content)


def structural_damage(source: Seed) -> tuple[str, ...]:
    """Names of the damage that fits the format of a file."""
    return tuple(DICOM_DAMAGE if source.kind == DICOM else PICTURE_DAMAGE[source.kind])


def damaged(random: Random, source: Seed, damage: list[str]) -> bytes:
    """The content of a sound file after this structural damage."""
    if source.kind == DICOM:
        draft = Draft.of(source.content)
        for name in damage:
            DICOM_DAMAGE[name](random, draft)
        return draft.encode()
    content = source.content
    for name in damage:
        content = PICTURE_DAMAGE[source.kind][name](random, content)
    return content
