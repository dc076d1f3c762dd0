"""Compiled programs kept on disk, so that a run started again need not compile anew.

In: the environment. Out: JAX's persistent cache, set up for the time of a `with`, under the user's
cache folder. It is a convenience: whatever goes wrong with it is one warning at most.

JAX writes its entries in place, so two processes can mix theirs and a kill can leave half of one,
which JAX then never replaces (tried). So every process has a folder of its own, in which the
entries are hard links to those kept, and a new entry is kept by linking it back, whole.

Entries lie apart by kind of processor and version of jaxlib: XLA loads what was compiled for
another processor with no more than a message (tried), and may then crash. On the CPU the cache is
used on Linux from jax 0.10.2 on: 0.9.2 and 0.10.1 print two lines of error for every entry that
they load (tried), and jaxlib on macOS has crashed at large entries (uwplasma/vmex pull request
142). With 0.10.2 the same bits come out with a cold, a warm and no cache.
"""

import collections
import contextlib
import hashlib
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jaxlib
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from dscint_jax.errors import DscintError

SWITCH = "DSCINT_COMPILATION_CACHE"
"""Environment variable: 'off', or 'on' where the cache is off by itself."""

FOLDER_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
MAX_BYTES = 2**30
"""Of all entries together; the longest unused go first."""

MIN_COMPILE_TIME_S = 0.1
"""What compiles faster is not worth a file."""

STALE_AFTER_S = 14 * 24 * 3600.0
"""Age at which the folder of a process that was killed is cleared away."""

CPU_SINCE = (0, 10, 2)
"""Version of JAX from which on the cache is used on the CPU."""

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"

_PRIVATE = ".process-"
_ENTRY = "*-cache"


class CompilationCache:
    """A context manager within which JAX keeps what it compiles, and loads what was kept.

    To be entered after `jax.distributed` is initialised and before the first compilation: it asks
    what the devices are.

    Attributes:
      folder: where the entries are kept; None if the cache is off.
      reason: why it is off; empty if it is on.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.reason = ""
        self._private: Path | None = None
        self._linked: set[str] = set()
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> "CompilationCache":
        root, self.reason = chosen_folder(os.environ)
        if root is None:
            return self
        try:
            self._open(root)
        except OSError as error:
            self.folder, self.reason = None, f"{root} cannot be written"
            print(
                f"warning: no compilation cache: {root} cannot be written ({error.strerror}); set "
                f"{FOLDER_VARIABLE} to another folder, or {SWITCH}=off",
                file=sys.stderr,
                flush=True,
            )
            return self
        self._configure()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.keep()
        self._undo.close()
        if self._private:
            shutil.rmtree(self._private, ignore_errors=True)

    def keep(self) -> None:
        """Keeps what was compiled so far; at the end by itself, and before where a kill may come.

        To be called when all has been compiled, after the first evaluation.
        """
        if self._private is None or self.folder is None:
            return
        for entry in sorted(self._private.glob(_ENTRY)):
            if entry.name in self._linked:
                continue
            self._linked.add(entry.name)
            # Another process may have kept the same, or the disk may be full.
            with contextlib.suppress(OSError):
                _place(entry, self.folder / entry.name)

    def _open(self, root: Path) -> None:
        self.folder = root / f"jaxlib-{jaxlib.__version__}-{_processor()[:12]}"
        # What lies here is run as a program: nobody else may write it.
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _clear(root)
        self._private = Path(tempfile.mkdtemp(prefix=_PRIVATE, dir=self.folder))
        for entry in self.folder.glob(_ENTRY):
            # Another process may just have cleared it away.
            with contextlib.suppress(FileNotFoundError):
                _place(entry, self._private / entry.name)
                self._linked.add(entry.name)

    def _configure(self) -> None:
        for name, value in {
            "jax_compilation_cache_dir": str(self._private),
            "jax_persistent_cache_min_compile_time_secs": MIN_COMPILE_TIME_S,
            "jax_persistent_cache_min_entry_size_bytes": 0,
            # Its path would be part of every key before jax 0.12.
            "jax_persistent_cache_enable_xla_caches": "none",
        }.items():
            self._undo.callback(jax.config.update, name, getattr(jax.config, name))
            jax.config.update(name, value)
        jax_cache.reset_cache()
        self._undo.callback(jax_cache.reset_cache)
        self._undo.enter_context(warnings.catch_warnings())
        # A damaged entry, or a full disk, costs a compilation and nothing else.
        warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")


def chosen_folder(environment: Mapping[str, str]) -> tuple[Path | None, str]:
    """The folder that the environment asks for.

    Args:
      environment: such as os.environ.

    Returns:
      The folder, or None and the reason.

    Raises:
      DscintError: DSCINT_COMPILATION_CACHE is neither on nor off.
    """
    switch = environment.get(SWITCH, "").strip().lower()
    if switch not in ("", "on", "off"):
        raise DscintError(f"{SWITCH} is '{environment[SWITCH]}'; it must be on or off, or not set")
    if switch == "off":
        return None, f"{SWITCH}=off"
    if not jax.config.jax_enable_compilation_cache:
        return None, "JAX_ENABLE_COMPILATION_CACHE is false"
    named = environment.get(FOLDER_VARIABLE)
    if named and "://" in named:
        return None, f"{FOLDER_VARIABLE} is no local folder"
    if switch != "on" and not named and jax.default_backend() == "cpu":
        if platform.system() != "Linux":
            return None, "on a CPU, only used on Linux"
        if jax.__version_info__ < CPU_SINCE:
            return None, f"on a CPU, only used from jax {'.'.join(map(str, CPU_SINCE))} on"
    if named:
        return Path(named), ""
    try:
        home = Path.home()
    except RuntimeError:
        return None, "there is no home directory"
    if platform.system() == "Darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "dscint-jax" / "compilation", ""


class CompilationCounter:
    """A context manager that counts, by name, the functions that JAX compiles or loads compiled.

    Attributes:
      counts: of every function, such as 'train_step'.
      seconds: that it took, all together.
    """

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.seconds = 0.0

    def __enter__(self) -> "CompilationCounter":
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, seconds: float, **details: Any) -> None:
        if event == COMPILE_EVENT:
            # JAX's own name is 'jit(train_step)'.
            name = str(details.get("fun_name", ""))
            self.counts[re.sub(r"^\w+\((.*)\)$", r"\1", name)] += 1
            self.seconds += seconds


def _place(source: Path, target: Path) -> None:
    """Gives a whole file a second name at once; one that is there already stays.

    Raises:
      OSError: the source is gone, or the target cannot be written.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except FileNotFoundError:
        raise
    except OSError:
        # A file system without hard links.
        copy = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            shutil.copyfile(source, copy)
            copy.replace(target)
        finally:
            copy.unlink(missing_ok=True)


def _clear(root: Path) -> None:
    """Removes what killed processes left, and the entries longest unused beyond `MAX_BYTES`."""
    now = time.time()
    for folder in root.glob(f"*/{_PRIVATE}*"):
        with contextlib.suppress(OSError):
            if now - folder.stat().st_mtime > STALE_AFTER_S:
                shutil.rmtree(folder, ignore_errors=True)
    entries = sorted(_entries(root), reverse=True)
    total = 0
    for _, size, entry in entries:
        total += size
        if total > MAX_BYTES:
            with contextlib.suppress(OSError):
                entry.unlink()


def _entries(root: Path) -> Iterator[tuple[float, int, Path]]:
    """When it was last read or written, size and path of every entry."""
    for entry in root.glob(f"*/{_ENTRY}"):
        with contextlib.suppress(OSError):
            status = entry.stat()
            yield max(status.st_atime, status.st_mtime), status.st_size, entry


def _processor() -> str:
    """A checksum of what decides which machine code this processor can run."""
    wanted = ("vendor_id", "cpu family", "model", "flags", "CPU part", "Features")
    found = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        for line in first.splitlines():
            name, _, value = line.partition(":")
            if name.strip() in wanted:
                found.append(f"{name.strip()} {' '.join(sorted(value.split()))}")
    return hashlib.sha256("\n".join(found).encode()).hexdigest()
