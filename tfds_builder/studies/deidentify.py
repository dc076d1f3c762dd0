"""What of a patient may reach the records: keyed pseudonyms, an age band, a known manufacturer.

In: identifiers from the manifest and the file's header, and a secret that the site keeps. Out: text
that says nothing about the person to whoever lacks the secret.
"""

import functools
import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path

from tfds_builder.commandline.errors import UserError

KEY_FILE_NAME = "pseudonym.key"
UNKNOWN = "unknown"

_KEY = re.compile(r"[0-9a-f]{64}", re.ASCII | re.IGNORECASE)
_MANUFACTURERS = (
    ("GE", re.compile(r"\bge\b|\bgems\b|general electric|elscint|elgems", re.I)),
    ("Siemens", re.compile(r"siemens|\bsms\b", re.I)),
    ("Philips", re.compile(r"philips|\badac\b|picker|marconi", re.I)),
    ("Mediso", re.compile(r"mediso", re.I)),
    ("Spectrum Dynamics", re.compile(r"spectrum dynamics", re.I)),
    ("Canon", re.compile(r"canon|toshiba", re.I)),
    ("phantom", re.compile(r"phantom|synthetic", re.I)),
)


def read_or_create_key(path: Path) -> tuple[bytes, bool]:
    """Reads the site's secret, or makes one at random (mode 0600) where there is none.

    Returns:
      The 32 bytes of the key, and whether the file was created now.

    Raises:
      UserError: the file is not a key, cannot be read, or cannot be created.
    """
    try:
        return _parse_key(path, path.read_text(encoding="ascii", errors="replace")), False
    except FileNotFoundError:
        return _create_key(path), True
    except OSError as error:
        raise UserError(f"{path}: cannot read the pseudonym key ({error.strerror})") from None


def refuse_key_in(data_dir: Path, key_file: Path) -> None:
    """Refuses a key that lies, or would be made, in the data directory, which it protects."""
    if key_file.resolve().is_relative_to(data_dir.resolve()):
        raise UserError(
            f"{key_file}: lies in the data directory, which is passed on; keep the key elsewhere "
            "(--pseudonym_key), or give another --data_dir"
        )


def _parse_key(path: Path, text: str) -> bytes:
    if not _KEY.fullmatch(text.strip()):
        raise UserError(
            f"{path}: a pseudonym key is 64 hexadecimal characters; restore the file, or remove it "
            "to have a new one made (all pseudonyms then change)"
        )
    return bytes.fromhex(text.strip())


def _create_key(path: Path) -> bytes:
    """Under a name of its own first: a build that is ended here must not leave half a key."""
    key = secrets.token_bytes(32)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    for_owner = functools.partial(os.open, mode=0o600)
    try:
        try:
            with open(part, "x", encoding="ascii", opener=for_owner) as file:
                file.write(key.hex() + "\n")
                file.flush()
                os.fsync(file.fileno())
            # Fails where another build has made one in the meantime, which then is the key.
            os.link(part, path)
        except FileExistsError:
            return _parse_key(path, path.read_text(encoding="ascii"))
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot create the pseudonym key ({error.strerror}); "
            "give a place that is writable and has hard links, such as your home folder, with "
            "--pseudonym_key"
        ) from None
    return key


def pseudonym(key: bytes, *names: str) -> str:
    """16 hexadecimal characters: the head of HMAC-SHA256(key, names with NUL between them).

    `names` are a patient_id; or a patient_id and a study, since study numbers recur; or, as no
    patient_id is empty, '', 'site' and a site.
    """
    return hmac.new(key, "\0".join(names).encode(), hashlib.sha256).hexdigest()[:16]


def age_band(age: int | None) -> str:
    """A decade such as '50-59', '90+' from 90 years (HIPAA safe harbour's limit), or 'unknown'."""
    if age is None:
        return UNKNOWN
    if age >= 90:
        return "90+"
    decade = age // 10 * 10
    return f"{decade}-{decade + 9}"


def manufacturer(text: str | None) -> str:
    """One of a short list of makers, 'other', or 'unknown' where the header is silent."""
    if not text or not text.strip():
        return UNKNOWN
    return next((name for name, pattern in _MANUFACTURERS if pattern.search(text)), "other")
