"""What the path of an image file says: its view, patient and study.

In: a path relative to the folder that is scanned. Out: what its words or a pattern of the user's
name, with where that was found, since it may be wrong.
"""

import re
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from tfds_builder.commandline.errors import UserError
from tfds_builder.readers.views import ANTERIOR, POSTERIOR
from tfds_builder.tables import composed

PATTERN_FIELDS = ("patient", "study", "view", "label", "site")
BY_FILE_NAME, BY_FOLDER_NAME, BY_PATTERN = "the file name", "the folder name", "--pattern"

# Whole words, or set off by capitals as in wholeBodyANT; 'pos' may mean positive.
_WORD = re.compile(
    r"(?i:anterior|posterior)"
    r"|(?<![A-Za-z])(?i:ant|post)(?![A-Za-z])"
    r"|(?<=[a-z0-9])(?:ANT|POST|Ant|Post)(?![a-z])"
    r"|(?<![A-Za-z])(?:ant|post)(?=[A-Z])"
)
_VIEWS = {"a": ANTERIOR, "p": POSTERIOR}
_LETTERED = re.compile(r"[AP](?=\d+$)")
_SEPARATORS = " _.-"
_DOUBLED = re.compile(r"([ _.-])[ _.-]+")
_SUFFIX = re.compile(r"\.(dcm|dicom|dic|ima|png|tiff?|jpe?g)$", re.I)


@dataclass(frozen=True)
class PathName:
    """What a path says; empty text where it says nothing.

    Attributes:
      patient, study, view, label, site: `view` is 'anterior' or 'posterior'.
      patient_by, study_by, view_by: what decided these.
      contradiction: whether words of both views are in it.
    """

    patient: str = ""
    study: str = ""
    view: str = ""
    label: str = ""
    site: str = ""
    patient_by: str = ""
    study_by: str = ""
    view_by: str = ""
    contradiction: bool = False


def read_words(path: PurePosixPath) -> PathName:
    """What the words of a path say.

    The view is named by the file or the nearest folder; the patient is what remains of the file's
    name, or of the nearest folder's; the study is what remains of the path, so that two views of
    one study, in two folders or under two names, come together.
    """
    path = PurePosixPath(composed(str(path)))
    full_name, folders = without_suffix(path.name), path.parent.parts
    in_name = _views_in(full_name)
    in_folder = next(filter(None, map(_views_in, reversed(folders))), set())
    said = in_name | in_folder
    view = next(iter(said)) if len(said) == 1 else ""
    name = _without_views(full_name)
    if view and not in_name and _LETTERED.match(name) and _VIEWS[name[0].lower()] == view:
        name = name[1:]
    parts = [part for part in (*map(_without_views, folders), name) if part]
    view_by = (BY_FILE_NAME if in_name else BY_FOLDER_NAME) if view else ""
    patient_by = (BY_FILE_NAME if name else BY_FOLDER_NAME) if parts else ""
    return PathName(
        patient=parts[-1] if parts else "",
        study="/".join(parts),
        view=view,
        patient_by=patient_by,
        view_by=view_by,
        contradiction=len(said) > 1,
    )


def without_suffix(name: str) -> str:
    """A file's name without the suffix of an image; what follows the last dot of a UID is none."""
    return _SUFFIX.sub("", name)


def _views_in(text: str) -> set[str]:
    return {_VIEWS[word[0].lower()] for word in _WORD.findall(text)}


def _without_views(text: str) -> str:
    bare = _WORD.sub("", text)
    if bare == text:
        return text
    return _DOUBLED.sub(r"\1", bare).strip(_SEPARATORS)


class PathPattern:
    """A regular expression of the user's whose named groups say what a path means.

    Groups are named after `PATTERN_FIELDS`; `patient_1`, `patient_2` and so on are joined with '/'.

    Raises:
      UserError: it is not a regular expression, or names nothing.
    """

    def __init__(self, text: str) -> None:
        try:
            self._expression = re.compile(composed(text))
        except re.error as error:
            raise UserError(f"--pattern '{text}': not a regular expression ({error})") from None
        names = list(self._expression.groupindex)
        self._groups = {
            field: sorted(name for name in names if re.fullmatch(rf"{field}(_\d)?", name))
            for field in PATTERN_FIELDS
        }
        known = {name for parts in self._groups.values() for name in parts}
        strange = [name for name in names if name not in known]
        if strange or not names:
            what = f"unknown group '{strange[0]}'" if strange else "no named group"
            raise UserError(
                f"--pattern '{text}': {what}; name groups (?P<...>) "
                f"{', '.join(PATTERN_FIELDS)}, or patient_1, patient_2 ... to join"
            )

    def read(self, path: PurePosixPath) -> PathName | None:
        """What a path says; words are asked where the pattern is silent. None: no match.

        Raises UserError where the view is neither.
        """
        path = PurePosixPath(composed(str(path)))
        found = self._expression.search(str(path))
        if not found:
            return None
        written = {
            field: "/".join(filter(None, (found[name] for name in names)))
            for field, names in self._groups.items()
        }
        written["view"] = self._view(written["view"], path)
        said = {field: text for field, text in written.items() if text}
        by = {f"{field}_by": BY_PATTERN for field in ("patient", "study", "view") if field in said}
        words = read_words(path)
        contradiction = words.contradiction and "view" not in said
        return replace(words, **said, **by, contradiction=contradiction)

    def _view(self, text: str, path: PurePosixPath) -> str:
        views = dict.fromkeys(("a", "ant", "anterior"), ANTERIOR) | {"": ""}
        views |= dict.fromkeys(("p", "pos", "post", "posterior"), POSTERIOR)
        if text.lower() not in views:
            raise UserError(
                f"--pattern: its view '{text}' in {path} is neither anterior (a, ant) nor "
                "posterior (p, pos, post)"
            )
        return views[text.lower()]


def printable(path: PurePosixPath) -> str:
    """A path as it may be printed: names from elsewhere can hold anything."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(path))
