"""Tapes and heads of a NAM Turing Machine over a whole sequence by the compiled kernel, with a hand-written backward.

The kernel knows rolls and jumps only: other actions are Python functions. The equations are in ``machine``. For the backward it
keeps the heads of all steps and what each write erased, but a tape only every ``BLOCK`` steps, from which it repeats the writes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewshot_nam.memory.native.kernels import library, library_for, pointers
from fewshot_nam.memory.torch_modes import needs_plain_autograd
from fewshot_nam.memory.turing.heads import Action, Jump, Shift
from fewshot_nam.memory.turing.state import Controls, TuringState

BLOCK = 16
"""Steps between two kept tapes."""


class KernelFlags(NamedTuple):
    """The settings of a machine that the kernel needs, named as in ``TuringPreset``."""

    actions: tuple[Action, ...]
    key_erase: str
    head_norm: str
    order: str


def kernel_takes(actions: Sequence[Action], head: Tensor) -> bool:
    """Return whether there is a compiled kernel that can run a machine with these actions and heads like ``head``."""
    # A traced tensor has no memory to point to.
    traced = torch.compiler.is_compiling() or needs_plain_autograd() or type(head) is not Tensor
    known = all(type(action) in (Shift, Jump) for action in actions)
    return known and not traced and library_for(head) is not None


def run_by_kernel(
    controls: Controls, state: TuringState, mask: Tensor | None, flags: KernelFlags
) -> tuple[Tensor, TuringState]:
    """Return the reads ``(B, T, tapes, c)`` and the state after the last step, without the controller's.

    Args:
        controls: the controls of all steps, with gates of 0 where ``mask`` is False.
        state: the state before the first step, in the dtype of ``controls``.
        mask: ``(B, T)`` bool, or None; where False the heads stay.
        flags: the settings of the machine.
    """
    c = controls
    inputs = (c.values, c.read_actions, c.write_actions, c.p_read, c.p_write, c.p_erase, c.keys, c.queries)
    reads, value_tape, read_head, write_head, key_tape, *_ = _Run.apply(  # type: ignore[no-untyped-call]
        flags, mask, *inputs, state.value_tape, state.key_tape, state.read_head, state.write_head
    )
    return reads, TuringState(value_tape, key_tape, read_head, write_head)


class _Sizes(ctypes.Structure):
    """The struct ``nam::TuringSizes`` of the C++ file; all fields are ``int64_t``."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("batch", "steps", "tapes", "width", "cells", "actions", "block", "threads"),
            *("has_keys", "by_position", "norm_access", "norm_state", "write_first"),
        )
    )


_INPUTS = 12
"""The number of input tensors, which are in the order of the fields of ``nam::Inputs`` and ``nam::Gradients``."""


class _Run(torch.autograd.Function):
    """The whole sequence."""

    @staticmethod
    def forward(ctx: Any, flags: KernelFlags, mask: Tensor | None, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the reads, tapes and heads after the last step (value tape, heads, key tape), and what the backward needs."""
        inputs = [None if x is None else x.contiguous() for x in given]
        mask = None if mask is None else mask.contiguous()
        values, value_tape, head = inputs[0], inputs[8], inputs[10]
        assert values is not None
        assert value_tape is not None
        assert head is not None
        batch, steps, tapes, width = values.shape
        cells, blocks, has_keys = value_tape.shape[-1], -(-steps // BLOCK), inputs[9] is not None
        found_keys = 0 if not has_keys else width if flags.key_erase == "position" else cells
        by_tape = (batch, tapes)
        kept = [
            values.new_empty(*by_tape, *shape)
            for shape in (
                *((steps, 2, cells), (steps, width), (steps, found_keys), (steps, 2)),
                *((blocks, width, cells), (blocks * has_keys, width, cells)),
            )
        ]
        last_key_tape = value_tape.new_empty(value_tape.shape) if has_keys else None
        outputs = [torch.empty_like(x) for x in (values, value_tape, head, head)]
        in_c_order = [*outputs[:2], last_key_tape, *outputs[2:]]
        _call("forward", flags, mask, inputs, kept, _array(in_c_order))
        ctx.flags = flags
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mask, *inputs, *outputs[2:], *kept)
        ctx.mark_non_differentiable(*kept)
        return *outputs, last_key_tape, *kept

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of all inputs."""
        return None, None, *_RunBackward.apply(ctx.flags, *grads[:5], *ctx.saved_tensors)  # type: ignore[no-untyped-call]


class _RunBackward(torch.autograd.Function):
    """The backward, as a function of its own, so that a second derivative raises instead of being wrong."""

    @staticmethod
    def forward(ctx: Any, flags: KernelFlags, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs, from the gradients of ``_Run``'s outputs and the tensors it saved."""
        grads, (mask, *saved) = list(tensors[:5]), tensors[5:]
        inputs, last, kept = saved[:_INPUTS], saved[_INPUTS : _INPUTS + 2], saved[_INPUTS + 2 :]
        wanted = [inputs[0], inputs[8], *last, inputs[9]]
        full = [
            None if x is None else torch.zeros_like(x) if grad is None else grad.contiguous()
            for grad, x in zip(grads, wanted, strict=True)
        ]
        found = [None if x is None else torch.empty_like(x) for x in inputs]
        in_c_order = [*full[:2], full[4], *full[2:4]]
        _call("backward", flags, mask, inputs, kept, _array(in_c_order), _array(last), _array(found))
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> None:
        """Raise."""
        raise RuntimeError('NAMTuringMachine: the compiled kernel has no second derivative: pass backend="loop"')


def _call(
    way: str,
    flags: KernelFlags,
    mask: Tensor | None,
    inputs: Sequence[Tensor | None],
    kept: Sequence[Tensor | None],
    *arrays: ctypes.Array[ctypes.c_void_p],
) -> None:
    values, actions, value_tape = inputs[0], inputs[1], inputs[8]
    assert values is not None
    assert actions is not None
    assert value_tape is not None
    cells = value_tape.shape[-1]
    steps = [action.offset % cells if isinstance(action, Shift) else -1 for action in flags.actions]
    offsets = (ctypes.c_int64 * len(steps))(*steps)
    sizes = _Sizes(
        *values.shape,
        *(cells, len(steps), BLOCK, torch.get_num_threads()),
        *(inputs[9] is not None, flags.key_erase == "position"),
        *(flags.head_norm == "access", flags.head_norm == "state", flags.order == "write_first"),
    )
    compiled = library()
    if compiled is None:
        raise RuntimeError("NAMTuringMachine: the compiled kernels were switched off between forward and backward")
    run = getattr(compiled, f"nam_turing_{way}_{str(values.dtype).removeprefix('torch.')}")
    fields = (ctypes.c_void_p * (_INPUTS + 2))(*pointers(*inputs, mask), ctypes.addressof(offsets))
    run(ctypes.byref(sizes), fields, _array(kept), *arrays)


def _array(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    found = pointers(*tensors)
    return (ctypes.c_void_p * len(found))(*found)
