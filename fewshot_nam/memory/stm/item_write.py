"""The gated write of STM's item memory: torch's operations, or on a CPU one compiled pass with a hand-written backward.

With the item memory ``I (d x d)``, vectors ``a`` and ``b``, and ``u`` of ``2 d`` numbers, what the input adds to every gate::

    X = a b^T, or tanh(a b^T) where ``squashed``
    [L_i | L_f] = tanh(I) W^T + u                      u is added to every row
    I' = sigmoid(L_i) * X + sigmoid(L_f) * I

Next to the product that makes the gates this is a dozen operations on ``d^2`` numbers for each sequence, which in torch each go
through the main memory.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fewshot_nam.memory.native.kernels import library, library_for, pointers
from fewshot_nam.memory.torch_modes import needs_plain_autograd


def write_item(item: Tensor, a: Tensor, b: Tensor, driven: Tensor, weight: Tensor, squashed: bool) -> Tensor:
    """Return the item memory ``(B, d, d)`` after a write; all tensors have one dtype and device.

    Args:
        item: ``(B, d, d)``.
        a: ``(B, d)``, rows of what is written.
        b: ``(B, d)``, its columns.
        driven: ``(B, 2 d)``, ``u``.
        weight: ``(2 d, d)``, ``W``.
        squashed: whether a ``tanh`` is taken of ``a b^T``.
    """
    # A traced tensor has no memory to point to.
    traced = torch.compiler.is_compiling() or needs_plain_autograd() or type(item) is not Tensor
    if traced or library_for(item) is None:
        return _in_torch(item, a, b, driven, weight, squashed)
    written: Tensor = _Write.apply(squashed, item, a, b, driven, weight)  # type: ignore[no-untyped-call]
    return written


def _in_torch(item: Tensor, a: Tensor, b: Tensor, driven: Tensor, weight: Tensor, squashed: bool) -> Tensor:
    written = a.unsqueeze(2) * b.unsqueeze(1)
    if squashed:
        written = written.tanh()
    enter, keep = (F.linear(item.tanh(), weight) + driven.unsqueeze(1)).sigmoid().chunk(2, dim=-1)
    return torch.addcmul(enter * written, keep, item)


class _Write(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, squashed: bool, *given: Tensor) -> Tensor:
        item, *others = (x.contiguous() for x in given)
        after = torch.empty_like(item)
        gates = None  # (B, d, 2 d), only for the backward
        if any(ctx.needs_input_grad):
            gates = item.new_empty(*item.shape[:2], 2 * item.shape[2])
        _call("forward", squashed, item, *others, after, gates)
        ctx.squashed = squashed
        ctx.save_for_backward(*given, gates)
        return after

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        item, a, b, driven, weight, gates = ctx.saved_tensors
        given = (item, a, b, driven, weight)
        if torch.is_grad_enabled():  # the gradient is to have a gradient: torch's operations know theirs
            # Views, since the tensors may depend on each other, or be the same: each is to have its own part.
            item, a, b, driven, weight = views = [x.view_as(x) for x in given]
            wanted = [x for x, needed in zip(views, ctx.needs_input_grad[1:], strict=True) if needed]
            found = iter(
                torch.autograd.grad(
                    _in_torch(item, a, b, driven, weight, ctx.squashed), wanted, grad, create_graph=True
                )
            )
            return None, *(next(found) if needed else None for needed in ctx.needs_input_grad[1:])
        item, a, b, driven, weight = (x.contiguous() for x in given)
        grads = [torch.empty_like(x) for x in (item, a, b, driven, weight)]
        _call("backward", ctx.squashed, grad.contiguous(), item, a, b, weight, gates, *grads)
        return None, *grads


class _Sizes(ctypes.Structure):
    """The struct ``nam::ItemSizes`` of the C++ file; all fields are ``int64_t``."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("batch", "width", "squashed", "threads"))


def _call(way: str, squashed: bool, *tensors: Tensor | None) -> None:
    first = tensors[0]
    assert first is not None
    compiled = library()
    if compiled is None:
        raise RuntimeError("STM: the compiled kernels were switched off between forward and backward")
    sizes = _Sizes(*first.shape[:2], squashed, torch.get_num_threads())
    run = getattr(compiled, f"nam_stm_{way}_{str(first.dtype).removeprefix('torch.')}")
    run(ctypes.byref(sizes), *map(ctypes.c_void_p, pointers(*tensors)))
