"""Calls of the compiled scan (``scan.cpp``), which takes the tensors of the operators in ``chunk`` and gives their results.

It goes token by token. For small memories that is faster than the chunk form, where torch's calls cost more than their arithmetic:
forward and backward take a quarter of the time at 8 x 8 numbers a head, and four fifths at 32 x 32 (one thread).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from fewshot_nam.memory.native.kernels import library_for, pointers

LARGEST = 32 * 32
"""The most numbers in a memory for which the compiled scan is used; beyond it the chunk form's matrix products are faster."""


class _Sizes(ctypes.Structure):
    """The struct ``nam::ScanSizes`` of the C++ file; all fields are ``int64_t``."""

    _fields_ = tuple(
        (name, ctypes.c_int64) for name in ("batch", "steps", "heads", "keys", "values", "segment", "threads")
    )


def kernel_for(v: Tensor, state: Tensor) -> ctypes.CDLL | None:
    """Return the kernels if they are to scan values ``(B, T, H, D_v)`` into a state ``(G, D_k, D_v)``, else None."""
    small = state.shape[-2] * state.shape[-1] <= LARGEST
    return library_for(v) if small and v.dtype == state.dtype and state.numel() > 0 else None


def run_forward(
    library: ctypes.CDLL, tokens: Sequence[Tensor | None], states: Tensor, reads: Tensor, segment: int
) -> None:
    """Write ``reads``, and ``states`` from the second on, from the first one; both are contiguous.

    Args:
        library: of ``kernel_for``.
        tokens: the fields of ``chunk.Tokens``.
        states: ``(segments + 1, G, D_k, D_v)``.
        reads: ``(B, T, H, D_v)``.
        segment: tokens between two states.
    """
    given = [None if x is None else x.contiguous() for x in tokens]
    run = getattr(library, f"nam_scan_forward_{_kind(states)}")
    run(ctypes.byref(_sizes(reads, states, segment)), _array(given), *map(ctypes.c_void_p, pointers(states, reads)))


def run_backward(
    library: ctypes.CDLL,
    tokens: Sequence[Tensor | None],
    states: Tensor,
    grad_reads: Tensor,
    grad_state: Tensor,
    grads: Sequence[Tensor | None],
    segment: int,
) -> None:
    """Write ``grads``, the gradients of the tokens, all contiguous; ``grad_state`` of the last state becomes that of the first."""
    given = [None if x is None else x.contiguous() for x in tokens]
    grad_reads = grad_reads.contiguous()
    run = getattr(library, f"nam_scan_backward_{_kind(states)}")
    places = map(ctypes.c_void_p, pointers(states, grad_reads, grad_state))
    run(ctypes.byref(_sizes(grad_reads, states, segment)), _array(given), *places, _array(grads))


def _sizes(reads: Tensor, states: Tensor, segment: int) -> _Sizes:
    return _Sizes(*reads.shape[:3], *states.shape[-2:], segment, torch.get_num_threads())


def _kind(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _array(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    found = pointers(*tensors)
    return (ctypes.c_void_p * len(found))(*found)
