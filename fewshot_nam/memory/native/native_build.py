"""The builder of compiled code: C++ files beside a module become a shared library, built on first use and kept for later processes.

``FEWSHOT_NAM_COMPILE`` is the only switch: unset or 1, libraries are built on first use; 0, nothing compiled is built or used.
Where there is no library, callers use torch or NumPy, with the same results but for rounding.

Libraries are kept in a directory ``compiled`` under ``$FEWSHOT_NAM_CACHE``, else ``$TORCH_EXTENSIONS_DIR``, else
``$XDG_CACHE_HOME/fewshot-nam``, else ``~/.cache/fewshot-nam``. Two rules make it safe to load them:

- Only the user may write there. The directory is created with mode 0700. A directory or file of another owner, or one that
  its group or others may write, is refused, and so is a directory below one where others may rename it.
- A file is complete. Its name holds the digest of its contents, which is compared before the file is loaded, since loading a
  truncated library kills the process. A damaged file is deleted and built again.

The file name also depends on the sources, the compiler flags and the processor's instruction set, so that different machines can
share a home directory. The code takes pointers only and does not depend on the versions of Python and torch.
This module imports neither torch nor NumPy.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

SWITCH = "FEWSHOT_NAM_COMPILE"
"""The environment variable that turns compiled code off."""

REORDERED_SUMS = ("-fassociative-math", "-fno-signed-zeros")
"""Compiler flags that allow sums in any order. ``-ffast-math`` would also change how the rest of the process rounds."""

_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-w")
_COMPILERS = ("c++", "g++", "clang++")  # tried in this order where CXX is not set
_BUILD_SECONDS = 600
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_libraries: dict[tuple[tuple[Path, ...], tuple[str, ...]], ctypes.CDLL | None] = {}  # None: tried without success
_reported: set[str] = set()


def library(*sources: Path, flags: Sequence[str] = REORDERED_SUMS, retry: bool = False) -> ctypes.CDLL | None:
    """Return the compiled functions of C++ files, built on first use; None where there are none, with one warning in the log.

    Threads and processes may call it at the same time. Building takes 2 to 10 seconds, once for a machine and version.

    Args:
        sources: C++ files, compiled into one library named after the first. The headers (``*.h``) beside them and
            beside this module are part of them.
        flags: compiler flags in addition to those common to all libraries.
        retry: build again although an earlier attempt of this process failed.

    Raises:
        ValueError: ``FEWSHOT_NAM_COMPILE`` is neither 0 nor 1.
    """
    if not compilation_enabled():
        return None
    key = (sources, tuple(flags))
    found = _libraries.get(key)
    if found is not None or (key in _libraries and not retry):
        return found
    with _lock:
        if _libraries.get(key) is None:
            _libraries[key] = _load(sources, tuple(flags))
        return _libraries[key]


def compilation_enabled() -> bool:
    """Return whether compiled code may be built and used.

    Raises:
        ValueError: ``FEWSHOT_NAM_COMPILE`` is neither 0 nor 1.
    """
    value = os.environ.get(SWITCH, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{SWITCH} must be 0 (use no compiled code) or 1 (compile on first use), got {value!r}")
    return value != "0"


def _load(sources: tuple[Path, ...], flags: tuple[str, ...]) -> ctypes.CDLL | None:
    try:
        directory = _private_directory()
        name = f"{sources[0].stem}-{_fingerprint(sources, flags)}"
        path = _complete(directory, name) or _build(directory, name, sources, flags)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        reason = f"no compiled code, torch and NumPy are used instead, which is slower: {error}"
        if reason not in _reported:  # one line, however many libraries have the same problem
            _reported.add(reason)
            _log.warning("%s", reason)
        return None


def _directory() -> Path:
    own = os.environ.get("FEWSHOT_NAM_CACHE") or os.environ.get("TORCH_EXTENSIONS_DIR")
    base = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "fewshot-nam"
    return Path(os.path.abspath(base.expanduser())) / "compiled"


def _private_directory() -> Path:
    """Return the directory of libraries, created if needed.

    Raises:
        OSError: it cannot be created, or others than the user could put a library there.
    """
    if os.name != "posix":
        raise OSError("compiled code needs a POSIX system")
    directory = _directory()
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    _check_private(directory, os.lstat(directory))
    for parent in directory.resolve().parents:
        found = os.stat(parent)
        # Where others may rename entries, they could exchange the directory after this check. A sticky bit (/tmp) prevents it,
        # and a group with the number of its user has no other members.
        own_group = found.st_gid == found.st_uid == os.geteuid() and not found.st_mode & stat.S_IWOTH
        if found.st_mode & _WRITABLE_BY_OTHERS and not found.st_mode & stat.S_ISVTX and not own_group:
            raise OSError(
                f"{directory} is not safe from other users, who may write {parent} (mode {found.st_mode & 0o7777:04o}): "
                f"change that mode, or set FEWSHOT_NAM_CACHE to a directory of your own"
            )
    return directory


def _check_private(path: Path, found: os.stat_result) -> None:
    """Raise ``OSError`` where others than the user may write ``path``."""
    hint = "delete it, or set FEWSHOT_NAM_CACHE to a directory of your own"
    if found.st_uid != os.geteuid():
        raise OSError(f"{path} belongs to user {found.st_uid}, not to you (user {os.geteuid()}): {hint}")
    if found.st_mode & _WRITABLE_BY_OTHERS or stat.S_ISLNK(found.st_mode):
        kind = "is a link" if stat.S_ISLNK(found.st_mode) else "may be written by others"
        raise OSError(f"{path} {kind} (mode {found.st_mode & 0o7777:04o}): {hint}")


def _complete(directory: Path, name: str) -> Path | None:
    """Return the library called ``name`` if there is one; delete damaged ones.

    Raises:
        OSError: others than the user may write it.
    """
    for path in sorted(directory.glob(f"{name}-*.so")):
        _check_private(path, os.lstat(path))
        if path.name == _file_name(name, path.read_bytes()):
            return path
        _log.info("%s is damaged and is built again", path)
        path.unlink(missing_ok=True)
    return None


def _file_name(name: str, contents: bytes) -> str:
    return f"{name}-{hashlib.sha256(contents).hexdigest()[:32]}.so"


def _build(directory: Path, name: str, sources: Sequence[Path], flags: Sequence[str]) -> Path:
    """Return the library compiled from ``sources``, which appears in ``directory`` complete or not at all.

    Raises:
        OSError: the directory cannot be written.
        RuntimeError: there is no compiler, or it fails.
        ValueError: ``CXX`` is no command line.
    """
    with tempfile.TemporaryDirectory(prefix="fewshot-nam-") as work:
        result = Path(work) / "library.so"
        command = [*_compiler(), *_FLAGS, *flags, *map(str, sources), "-o", str(result)]
        _log.info("compiling: %s", shlex.join(command))
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_BUILD_SECONDS)
        if done.returncode:
            output = " / ".join(done.stderr.strip().splitlines()[:3])
            raise RuntimeError(f"{shlex.join(command)} failed: {output or f'exit status {done.returncode}'}")
        contents = result.read_bytes()
    path = directory / _file_name(name, contents)
    handle, unfinished = tempfile.mkstemp(dir=directory)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(contents)
        os.chmod(unfinished, 0o700)
        os.replace(unfinished, path)
    except BaseException:
        os.unlink(unfinished)
        raise
    return path


def _compiler() -> list[str]:
    """Return the command of the C++ compiler: ``$CXX``, or the first of ``_COMPILERS`` that is installed."""
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise ValueError(f"CXX={os.environ['CXX']!r} is no command: {error}") from None
    found = named or [name for name in _COMPILERS if shutil.which(name)][:1]
    if not found or not shutil.which(found[0]):
        missing = repr(found[0]) if found else "(c++, g++ or clang++)"
        raise RuntimeError(f"there is no C++ compiler {missing}: install one, or name it in CXX")
    return found


def _fingerprint(sources: Sequence[Path], flags: Sequence[str]) -> str:
    """Return a digest of all that decides what the machine code does."""
    headers = sorted({header for place in (Path(__file__), *sources) for header in place.parent.glob("*.h")})
    parts = [path.read_bytes() for path in (*sources, *headers)]
    parts += [text.encode() for text in (*_FLAGS, *flags, platform.system(), platform.machine(), _instructions())]
    parts.append(os.fsencode(os.environ.get("CXX", "")))  # of a compiler by another name, built anew
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


@functools.cache
def _instructions() -> str:
    """Return the processor's instruction set: code for one processor may be illegal on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.processor()} {platform.node()}"
    return "\n".join(sorted({line for line in lines if re.match(r"(flags|Features|isa)\s*:", line)}))
