"""Compiled kernels for LSAM and the NAM Turing Machine on a CPU: built once when asked for, used from then on.

``build_kernels()`` compiles the C++ files beside this one, in about ten seconds, once for a machine and version, and keeps the
result under ``$FEWSHOT_NAM_CACHE``, else ``$TORCH_EXTENSIONS_DIR``, else ``$XDG_CACHE_HOME/fewshot-nam``, else
``~/.cache/fewshot-nam``. Every later process finds it there by itself. Nothing is built without being asked for: no server and no
test run stops for a compiler. ``FEWSHOT_NAM_COMPILE=1`` asks for it at first use; with ``0`` nothing compiled is built or used.
Without kernels torch does the work, with the same numbers but for rounding.

What is built is for the processor that it was built on, whose instructions are part of its name: machines of different kinds can
share a directory. It takes pointers alone, and so goes with any version of Python and torch.
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

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

_SOURCES = ("lsam/lsam.cpp", "turing/turing.cpp")
_HEADERS = ("native/kernels.h",)
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",  # else a standard C++ mode forgoes the processor's multiply-add
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-fPIC",
    "-shared",
    "-w",
)
_SWITCH = "FEWSHOT_NAM_COMPILE"

_library: ctypes.CDLL | None = None
_sought = False


def build_kernels() -> bool:
    """Compile the kernels where that has not been done, and use them in this process and all later ones.

    Needs a C++ compiler that knows OpenMP: ``$CXX``, or else ``c++``, ``g++`` or ``clang++``. Any number of processes may call it
    at once. Networks that are already there use the kernels as well.

    Returns:
        Whether the kernels are in use now. Where they are not, one warning in the log says why, and everything works as before.

    Raises:
        ValueError: ``FEWSHOT_NAM_COMPILE`` is neither 0 nor 1.
    """
    if _switch() == "0":
        _log.warning("no compiled kernels, torch does their work: %s=0", _SWITCH)
        return False
    if _library is None:
        _seek(build=True)
    return _library is not None


def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, if they were built for this version and processor and are not switched off.

    Raises:
        ValueError: ``FEWSHOT_NAM_COMPILE`` is neither 0 nor 1.
    """
    switch = _switch()
    if switch == "0":
        return None
    if not _sought:
        _seek(build=switch == "1")
    return _library


def library_for(x: Tensor) -> ctypes.CDLL | None:
    """Return the compiled kernels if there is something in ``x`` for them: numbers on a CPU, in float32 or float64."""
    fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.numel() > 0
    return library() if fits else None


def pointers(*tensors: Tensor | None) -> list[int | None]:
    """Return where the numbers of contiguous tensors begin, NULL for None."""
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _switch() -> str:
    """Return what the user said about compiling: "0", "1" or nothing."""
    value = os.environ.get(_SWITCH, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{_SWITCH} must be 0 (use nothing compiled) or 1 (compile at first use), got {value!r}")
    return value


def _seek(*, build: bool) -> None:
    """Load the kernels, and build them before if they are not there and ``build`` says so; or say in the log why not."""
    global _library, _sought
    _sought = True
    try:
        path = _path()
        if not path.exists():
            if not build:
                _log.info(
                    "no compiled kernels, torch does their work: fewshot_nam.memory.build_kernels() builds them, once"
                )
                return
            _compile(path)
        _library = ctypes.CDLL(str(path))
    except (OSError, RuntimeError) as error:
        _log.warning("no compiled kernels, torch does their work: %s", error)


def _directory() -> Path:
    own = os.environ.get("FEWSHOT_NAM_CACHE") or os.environ.get("TORCH_EXTENSIONS_DIR")
    if own:
        return Path(own).expanduser() / "compiled"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fewshot-nam" / "compiled"


def _path() -> Path:
    """Return where the kernels of these sources for this processor are, or would be.

    Raises:
        OSError: the package came without its sources.
        RuntimeError: there is no home directory.
    """
    return _directory() / f"kernels-{_fingerprint()}.so"


@functools.lru_cache(maxsize=1)
def _fingerprint() -> str:
    here = Path(__file__).parent.parent
    parts = [(here / name).read_bytes() for name in (*_SOURCES, *_HEADERS)]
    surroundings = [*_FLAGS, platform.system(), platform.machine(), _instructions()]
    parts += [text.encode() for text in surroundings]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def _instructions() -> str:
    """Return what the processor can do: the kernels of one may be illegal instructions for another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    telling = (line for line in lines if line.split(":")[0].strip() in ("flags", "Features", "isa"))
    return next(telling, platform.processor())


def _compile(path: Path) -> None:
    """Leave the kernels at ``path``, whole or not at all.

    Raises:
        OSError: the directory cannot be written.
        RuntimeError: there is no compiler, or it fails.
    """
    named = shlex.split(os.environ.get("CXX", ""))
    found = [[name] for name in ("c++", "g++", "clang++") if shutil.which(name)]
    if not named and not found:
        raise RuntimeError("there is no C++ compiler: install g++ or clang++, or name one in CXX")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as workplace:
        result = Path(workplace) / path.name
        here = Path(__file__).parent.parent
        command = [*(named or found[0]), *_FLAGS, *(str(here / name) for name in _SOURCES), "-o", str(result)]
        _log.info("compiling kernels: %s", shlex.join(command))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise RuntimeError(
                f"{shlex.join(command)} failed: {' / '.join(said[:3]) or f'exit status {done.returncode}'}"
            )
        os.replace(result, path)
