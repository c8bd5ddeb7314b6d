"""The compiled kernels of LSAM, the NAM Turing Machine, the scan and STM on a CPU: which files they are, and how they get tensors.

They replace the loops over time of ``lsam.recurrence`` and ``turing``, the chunks of ``scan`` where memories are small, and the
write of STM's item memory; results are the same up to rounding. Like all compiled code (``native_build``), they are built on first
use, which takes about ten seconds, once for each machine and package version.
"""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path

import torch
from torch import Tensor

from fewshot_nam.memory.native import native_build

_log = logging.getLogger(__name__)

_MEMORY = Path(__file__).parent.parent
_SOURCES = tuple(_MEMORY / name for name in ("lsam/lsam.cpp", "turing/turing.cpp", "scan/scan.cpp", "stm/stm.cpp"))
# Without -ffp-contract=fast, a standard C++ mode does not use the processor's multiply-add.
_FLAGS = ("-ffp-contract=fast", "-fopenmp")


def build_kernels() -> bool:
    """Build the compiled kernels now, if that has not been done, and return whether they are in use.

    Without this call they are built when an LSAM, an STM, a NAM Turing Machine or a scan with small heads first runs on a CPU.
    Call it if that first run should not wait for a compiler, for example when you build a server's container. It needs a C++
    compiler with OpenMP: ``$CXX``, or else ``c++``, ``g++`` or ``clang++``. Any number of processes may call it at the same time.

    Returns:
        Whether the kernels are in use. If not, one warning in the log says why, and torch does their work.

    Raises:
        ValueError: ``FEWSHOT_NAM_COMPILE`` is neither 0 nor 1.
    """
    if not native_build.compilation_enabled():
        _log.warning("no compiled kernels, torch does their work: %s=0", native_build.SWITCH)
        return False
    return library(retry=True) is not None


def library(*, retry: bool = False) -> ctypes.CDLL | None:
    """Return the kernels, built if needed; None where they cannot be built or are switched off. See ``native_build.library``."""
    return native_build.library(*_SOURCES, flags=_FLAGS, retry=retry)


def library_for(x: Tensor) -> ctypes.CDLL | None:
    """Return the kernels if they can work on ``x``: a tensor on a CPU, in float32 or float64, that is not empty."""
    fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.numel() > 0
    return library() if fits else None


def pointers(*tensors: Tensor | None) -> list[int | None]:
    """Return the addresses of contiguous tensors, NULL for None."""
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]
