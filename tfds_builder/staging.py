"""A private folder to build in, and the swap that puts a whole data set in the place of an old one.

In: a data directory. Out: the folder, held against a second build; what killed builds left is
cleared up.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tfds_builder.commandline.errors import UserError

_STAGING = ".scintigraphy-being-built"
_REPLACED = "replaced"


@contextlib.contextmanager
def staging_folder(data_dir: Path) -> Iterator[Path]:
    """A private folder to build in. Holds the data directory against a second build.

    What killed builds left is removed, and what they were about to replace put back.
    """
    if data_dir.exists() and not data_dir.is_dir():
        raise UserError(f"--data_dir {data_dir}: is a file; give a folder")
    data_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(data_dir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for left in data_dir.glob(f"{_STAGING}*"):
            _restore_replaced(data_dir, left)
            shutil.rmtree(left, ignore_errors=True)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"{data_dir}: another build is running there; wait for it") from None
    except OSError:
        pass  # Some network file systems have no locks: then what others left may be in use.
    staging = Path(tempfile.mkdtemp(dir=data_dir, prefix=f"{_STAGING}-"))
    try:
        yield staging
    finally:
        _restore_replaced(data_dir, staging)
        shutil.rmtree(staging, ignore_errors=True)
        os.close(descriptor)


def _restore_replaced(data_dir: Path, staging: Path) -> None:
    """Puts a data set back whose successor did not take its place."""
    for replaced in (staging / _REPLACED).glob("*/*/*"):
        final = data_dir / replaced.relative_to(staging / _REPLACED)
        if not final.exists():
            replaced.rename(final)


def move_into_place(staging: Path, built: Path, final: Path) -> None:
    """Puts a built data set into its place; an older one waits in the staging folder till then."""
    config_folder = final.parent.parent / ".config"
    final.parent.mkdir(parents=True, exist_ok=True)
    if not config_folder.exists():
        (built.parent.parent / ".config").rename(config_folder)
    if final.exists():
        replaced = staging / _REPLACED / final.relative_to(staging.parent)
        replaced.parent.mkdir(parents=True)
        final.rename(replaced)
    built.rename(final)
