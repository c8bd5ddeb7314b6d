"""Compiled forms of a few functions: each built once from a C++ file beside its module, by the machine's own compiler, in seconds.

Where there is no compiler, no directory to build in, or ``FEWSHOT_NAM_COMPILE=0``, there is none, and torch or NumPy does the work.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

# Sums may be taken in any order, and that is all that is given up: -ffast-math would change how the whole process rounds.
_OPTIONS = (
    "-std=c++17 -O3 -march=native -fPIC -shared -fassociative-math -fno-signed-zeros -fno-trapping-math -fno-math-errno"
)
_BUILD_SECONDS = 120

_log = logging.getLogger(__name__)


@functools.cache
def library(source: Path) -> ctypes.CDLL | None:
    """Return the functions of a C++ file, built where they are not yet (about 2 seconds), or ``None`` with a line in the log.

    They are kept in ``FEWSHOT_NAM_CACHE``, or else where torch keeps its extensions or in ``~/.cache/fewshot-nam``, under a name
    that follows from source, compiler and processor. ``CXX`` names the compiler; ``c++`` is the one that is looked for otherwise.
    """
    if os.environ.get("FEWSHOT_NAM_COMPILE") == "0":
        return None
    try:
        built = _built(source)
        try:
            return ctypes.CDLL(str(built))
        except OSError:  # damaged since
            built.unlink()
            return ctypes.CDLL(str(_built(source)))
    except (OSError, ValueError, subprocess.SubprocessError) as error:  # ValueError: a quotation in CXX without an end
        said = getattr(error, "stderr", None)
        _log.warning("%s is not compiled, so that it is slower: %s%s", source.stem, error, f"\n{said}" if said else "")
        return None


def _built(source: Path) -> Path:
    """Return the library of a source, building it where it is not there."""
    compiler = shlex.split(os.environ.get("CXX") or "") or ["c++"]
    if shutil.which(compiler[0]) is None:
        raise OSError(f"no C++ compiler {compiler[0]!r}: install one, or name it in CXX")
    command = [*compiler, *_OPTIONS.split()]
    version = _run([*compiler, "--version"])
    # Code for one processor may not run on another, and a home directory may be shared by both.
    known = [source.read_text(encoding="utf-8"), *command, version, _processor()]
    key = hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]
    target = _directory() / f"{source.stem}-{key}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            unfinished = Path(work) / target.name
            _run([*command, str(source), "-o", str(unfinished)])
            unfinished.replace(target)  # whole or not at all, also where two processes build at once
    return target


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_BUILD_SECONDS).stdout


def _directory() -> Path:
    own = os.environ.get("FEWSHOT_NAM_CACHE") or os.environ.get("TORCH_EXTENSIONS_DIR")
    if own:
        return Path(own).expanduser() / "compiled"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fewshot-nam" / "compiled"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
    telling = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join(sorted(telling))
