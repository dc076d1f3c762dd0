"""The classes of a data set: their names, their order, and which of two is the more serious.

In: labels as people write them, and the list of `--classes` where there is one. Out: class names in
the order of the data set's ClassLabel; what can be no class, or looks misspelt, is questioned.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tfds_builder.commandline.errors import UserError
from tfds_builder.tables import composed

PUBLISHED = ("normal", "metastasis", "arthritis", "thyroid_carcinoma")
"""The four classes of Lin et al. 2021, in their published order."""

MOST_CLASSES = 20
"""More labels than this, unasked for, are no classes: the column may hold patients or reports."""

_PUBLISHED_BY_SEVERITY = ("normal", "arthritis", "thyroid_carcinoma", "metastasis")
_LONGEST_NAME = 40
_UNKNOWN = re.compile(
    r"unkn?|unknown|undefined|undetermined|missing|null|nil|none|nan|#?n/?a|n\.a\.|tb[da]|no_data|"
    r"not_(available|applicable|known)|unbekannt|inconnue?|desconocid[oa]|sconosciut[oa]|"
    r"#(ref!|value!|name\?|div/0!|null!|num!|spill!|calc!|getting_data|blocked!|field!)"
)
_LONG_WORD, _SHORTEST_WORD = 8, 4


@dataclass(frozen=True)
class Classes:
    """The classes of a data set, in the order of the ClassLabel.

    `severity` is those whose severity is known, least severe first.
    """

    names: tuple[str, ...]
    severity: tuple[str, ...]

    def most_serious(self, labels: Collection[str]) -> str | None:
        """The label of a study whose views have these; None where nothing ranks them."""
        different = set(labels)
        if len(different) == 1:
            return different.pop()
        if not different <= set(self.severity):
            return None
        return max(different, key=self.severity.index)

    def stratum(self, labels: Iterable[str]) -> str:
        """The label under which a patient is stratified: the most serious of their images' labels.

        Classes of unknown severity come after the others: any order does where it decides no label.
        """
        unranked = [name for name in self.names if name not in self.severity]
        return max(labels, key=[*self.severity, *unranked].index)


def classes_of(labels: Iterable[str], given: tuple[str, ...] | None = None) -> Classes:
    """The classes of a data set with these normalised labels.

    What `--classes` lists, least severe first, is `given`: it decides names, order and severity.
    """
    if given:
        return Classes(given, given)
    used = set(labels)
    published = tuple(name for name in PUBLISHED if name in used)
    return Classes(
        (*published, *sorted(used - set(PUBLISHED))),
        tuple(name for name in _PUBLISHED_BY_SEVERITY if name in used),
    )


def read_classes(text: str | None) -> tuple[str, ...] | None:
    """Reads the list of `--classes`; None where there is none.

    Raises UserError on a name that can be no class, or that occurs twice.
    """
    if text is None:
        return None
    names = tuple(normalise(name) for name in text.split(","))
    for name in names:
        fault = fault_of(name) or ("occurs twice" if names.count(name) > 1 else "")
        if fault:
            raise UserError(
                f"--classes {text}: '{name}' {fault}; give names with commas between them, least "
                "severe first, such as normal,abnormal"
            )
    return names


def normalise(label: str) -> str:
    """Trimmed, in lower case, composed, with underscores for spaces and hyphens."""
    return re.sub(r"[\s\-_]+", "_", composed(label.strip().casefold()))


def means_unknown(text: str) -> bool:
    """Whether a cell says that nothing is known: empty, '?', 'n/a', a spreadsheet's error value."""
    plain = normalise(text).strip("_")
    return not plain.strip("?-–—._*") or _UNKNOWN.fullmatch(plain) is not None


def fault_of(label: str) -> str:
    """Why a normalised label names no class; empty where it may name one."""
    if means_unknown(label):
        return "means unknown"
    # Letters, the marks that some scripts write vowels with, and digits.
    kinds = {unicodedata.category(letter)[0] for letter in label if letter != "_"}
    if len(label) > _LONGEST_NAME or "L" not in kinds or not kinds <= set("LMN"):
        return "is no name of a class (up to 40 letters, digits and _, not digits alone)"
    return ""


def question_labels(found: Mapping[str, Sequence[str]], too_many: str, remedy: str) -> None:
    """Asks about labels that are classes only because nothing says what the classes are.

    Args:
      found: label -> where each of its rows is.
      too_many: what to say of more labels than classes, up to "are classes, list them".
      remedy: how to mend a label that looks misspelt; {} is that label, then what it looks like.

    Raises:
      UserError: a label looks misspelt, or there are more of them than classes.
    """
    if len(found) > MOST_CLASSES:
        raise UserError(f"{too_many} are classes, list them: --classes A,B,...")
    alike = misspelt({label: len(places) for label, places in found.items()})
    if alike:
        label, other = alike
        raise UserError(
            f"{found[label][0]}: label '{label}' looks like '{other}' misspelt "
            f"({len(found[label])}x); {remedy.format(label, other)}, or list the classes: "
            f"--classes {','.join(classes_of(found).names)}"
        )


def misspelt(labels: Mapping[str, int]) -> tuple[str, str] | None:
    """A label that looks like a misspelling, and of what: another label, or a published class.

    `labels` is normalised label -> how often it occurs; of two alike the rarer one is questioned.
    """
    for label in sorted(labels, key=lambda one: (labels[one], one)):
        if label in PUBLISHED:
            continue
        for other in (*PUBLISHED, *labels):
            if label != other and _alike(label, other):
                return label, other
    return None


def _alike(one: str, other: str) -> bool:
    if one.replace("_", "") == other.replace("_", ""):
        return True
    words, others = one.split("_"), other.split("_")
    if len(words) != len(others):
        return False
    return all(a == b or _alike_words(a, b) for a, b in zip(words, others, strict=True))


def _alike_words(one: str, other: str) -> bool:
    """Whether two words differ as by a slip of the pen.

    Digits and short words number things (grade 1, stage ii), and a prefix changes what is meant
    (normal, abnormal).
    """
    shorter = min(len(one), len(other))
    if shorter < _SHORTEST_WORD or not (one + other).isalpha():
        return False
    if one.endswith(other) or other.endswith(one):
        return False
    return _distance(one, other) <= (2 if shorter >= _LONG_WORD else 1)


def _distance(one: str, other: str) -> int:
    """Letters to insert, delete, replace or exchange with their neighbour (optimal alignment)."""
    before, last = [], list(range(len(other) + 1))
    for n, letter in enumerate(one, start=1):
        row = [n]
        for m, second in enumerate(other, start=1):
            cost = min(last[m] + 1, row[m - 1] + 1, last[m - 1] + (letter != second))
            if n > 1 and m > 1 and letter == other[m - 2] and second == one[n - 2]:
                cost = min(cost, before[m - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]
