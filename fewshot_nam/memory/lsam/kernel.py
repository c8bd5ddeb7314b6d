"""Calls of the compiled loops of LSAM (``lsam.cpp``), which take the same tensors as the torch loops in ``recurrence``."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from fewshot_nam.memory.native.kernels import pointers


class _Sizes(ctypes.Structure):
    """The struct ``nam::Sizes`` of the C++ file; all fields are ``int64_t``."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("steps", "directions", "batch", "heads", "width", "block", "squashed", "threads"),
            *("gates_by_step", "gates_by_direction", "gates_by_batch"),
        )
    )


def run_forward(
    library: ctypes.CDLL,
    gates: Tensor,
    weight: Tensor,
    hidden: Tensor,
    memory: Tensor,
    squashed: bool,
    block: int,
    outputs: Sequence[Tensor],
) -> None:
    """Write ``outputs``, the results of the operator ``lsam`` in its order, all contiguous."""
    if gates.stride(-1) != 1:
        gates = gates.contiguous()
    inputs = [gates, weight.contiguous(), hidden.contiguous(), memory.contiguous()]
    sizes = _Sizes(*gates.shape[:3], *memory.shape[2:4], block, squashed, torch.get_num_threads(), *gates.stride()[:3])
    _call(library, "forward", sizes, *inputs, *outputs)


def run_backward(
    library: ctypes.CDLL,
    grad_hiddens: Tensor,
    grad_memory: Tensor,
    weight: Tensor,
    kept: Sequence[Tensor],
    block: int,
    grad_gates: Tensor,
    grad_first_memory: Tensor,
) -> None:
    """Write the gradients of the gates and of the first memory, both contiguous, from what the forward ``kept``."""
    values = kept[-1]
    inputs = [grad_hiddens.contiguous(), grad_memory.contiguous(), weight.contiguous(), *kept]
    sizes = _Sizes(
        *grad_hiddens.shape[:3], *grad_memory.shape[2:4], block, len(values) > 0, torch.get_num_threads(), 0, 0, 0
    )
    _call(library, "backward", sizes, *inputs, grad_gates, grad_first_memory)


def _call(library: ctypes.CDLL, way: str, sizes: _Sizes, *tensors: Tensor) -> None:
    kind = str(tensors[0].dtype).removeprefix("torch.")
    getattr(library, f"nam_lsam_{way}_{kind}")(ctypes.byref(sizes), *map(ctypes.c_void_p, pointers(*tensors)))
