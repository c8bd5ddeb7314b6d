"""A whole sequence of writes and reads, chunk by chunk: matrix products instead of a loop over tokens.

Per head ``M_t = M_(t-1) + w_t v_t k_t^T - e_t M_(t-1) k_t k_t^T`` and ``o_t = r_t M_t q_t``. With ``S = M^T`` and ``u_t`` for what
is really added at step t (``M_t = M_(t-1) + u_t k_t^T``), a chunk of C tokens that finds the memory S is, with tokens as rows,

    ``L U = W V - E K S``,  ``L = I + E strict_lower(K K^T)``      what is added
    ``O = R (Q S + lower(Q K^T) U)``                               what is read
    ``S' = S + K^T U``                                             what is left behind

so that only ``U`` and ``S'`` wait for the chunk before. ``L`` is unit lower triangular whatever the gates are, and nothing is
divided by a gate: 0 and 1 are exact. It is solved as a triangle, never by a series in its strict part, whose powers explode where
keys repeat. With ``e = 0`` it is the identity. (The UT transform of the delta rule, for two separate gates: Yang et al.,
"Parallelizing Linear Transformers with the Delta Rule over Sequence Length", 2024.)

A token's products reach the whole of its chunk and are masked after, so that NaN or infinity in one token spoils reads of tokens
before it, too, where the loop would spoil only those after it. With finite input nothing looks ahead.

Two forms of the same arithmetic: ``scan_by_autograd`` leaves derivatives to torch; ``scan_by_segments`` keeps the memory only
every ``SEGMENT`` tokens and recomputes the rest when it goes back, by hand-written formulas.

Legend: B batch, T tokens, H heads, n chunks, C tokens in a chunk, G = B * H, D_k and D_v the sizes of a key and a value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewshot_nam.memory.torch_modes import full_precision, needs_plain_autograd

SEGMENT = 128
"""Tokens between two memories that ``scan_by_segments`` keeps. Measured on a CPU: 128 to 256 is fastest, for caches."""


class Tokens(NamedTuple):
    """The sequence to be scanned; ``r`` is None where all is read in full, ``e`` where nothing is erased."""

    q: Tensor  # queries (B, T, H, D_k)
    k: Tensor  # keys (B, T, H, D_k)
    v: Tensor  # values (B, T, H, D_v)
    r: Tensor | None  # read gates (B, T, H, 1)
    w: Tensor  # write gates (B, T, H, 1)
    e: Tensor | None  # erase gates (B, T, H, 1)

    def each(self, change: Callable[[Tensor], Tensor]) -> Tokens:
        """Return all of them changed alike."""
        q, k, v, r, w, e = self
        r, e = (None if gate is None else change(gate) for gate in (r, e))
        return Tokens(change(q), change(k), change(v), r, change(w), e)


def scan_by_autograd(tokens: Tokens, memory: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Return reads ``(B, T, H, D_v)`` and the memory left ``(B, H, D_v, D_k)``, which torch can differentiate again and again.

    Args:
        tokens: T of them, a multiple of ``chunk``.
        memory: ``(B, H, D_v, D_k)``, found at the start.
        chunk: tokens in a chunk.
    """
    folded = tokens.each(lambda x: _fold(x, chunk))
    state, written = _write(folded, memory.mT.flatten(0, 1), _carry)
    return _unfold(_read(folded, written), memory), state.mT.reshape(memory.shape)


def scan_by_segments(tokens: Tokens, memory: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Return the same as ``scan_by_autograd``, of the same arguments; a second derivative raises.

    Inside ``torch.func`` and ``torch.export`` it is ``scan_by_autograd``.
    """
    if needs_plain_autograd():
        return scan_by_autograd(tokens, memory, chunk)
    reads, state = _SegmentedScan.apply(*tokens, memory.mT.flatten(0, 1), chunk)  # type: ignore[no-untyped-call]
    return reads, state.mT.reshape(memory.shape)


class _Written(NamedTuple):
    """What a run of n chunks left on the way, for reading and for going back."""

    products: Tensor  # K K^T (n * G, C, C)
    inverse: Tensor | None  # L^-1 (n * G, C, C); None without erase
    erasing: Tensor | None  # L^-1 E K (n, G, C, D_k); None without erase
    updates: Tensor  # U (n * G, C, D_v)
    memories: Tensor  # the memory that each chunk finds (n * G, D_k, D_v)


def _write(
    tokens: Tokens,
    state: Tensor,
    carry: Callable[[Tensor, Tensor, Tensor | None, Tensor], tuple[Tensor, Tensor, Tensor]],
) -> tuple[Tensor, _Written]:
    """Return the state left ``(G, D_k, D_v)`` and what was found on the way.

    Tokens are ``(n, G, C, .)``, the state is ``(G, D_k, D_v)``, ``carry`` does the serial part.
    """
    _, k, v, _, w, e = tokens
    keys = k.flatten(0, 1)
    products = keys @ keys.mT
    updates = (w * v).flatten(0, 1)
    inverse = erasing = None
    if e is not None:
        gates = e.flatten(0, 1)
        # the solver reads the strict lower part alone and takes the diagonal for 1.
        eye = torch.eye(k.shape[2], dtype=k.dtype, device=k.device).expand_as(products)
        inverse = torch.linalg.solve_triangular(gates * products, eye, upper=False, unitriangular=True)
        updates = inverse @ updates
        erasing = ((inverse * gates.mT) @ keys).view_as(k)
    state, updates, memories = carry(k, updates.view_as(v), erasing, state)
    return state, _Written(products, inverse, erasing, updates.flatten(0, 1), memories.flatten(0, 1))


def _carry(k: Tensor, updates: Tensor, erasing: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the state left, the updates less what they erase, and the state that each chunk finds: the serial part."""
    found, added = [], []
    for i, (k_i, u_i) in enumerate(zip(k.unbind(0), updates.unbind(0), strict=True)):
        found.append(state)
        if erasing is not None:
            u_i = torch.baddbmm(u_i, erasing[i], state, alpha=-1)
        added.append(u_i)
        state = torch.baddbmm(state, k_i.mT, u_i)
    return state, torch.stack(added), torch.stack(found)


def _carry_in_place(k: Tensor, updates: Tensor, erasing: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same as ``_carry``, the updates overwritten: fewer copies, for where autograd does not look."""
    memories = state.new_empty(k.shape[0] + 1, *state.shape)
    memories[0] = state
    for i in range(k.shape[0]):
        if erasing is not None:
            updates[i].baddbmm_(erasing[i], memories[i], alpha=-1)
        torch.baddbmm(memories[i], k[i].mT, updates[i], out=memories[i + 1])
    # A copy, so that one state kept does not keep them all.
    return memories[-1].clone(), updates, memories[:-1]


def _read(tokens: Tokens, written: _Written) -> Tensor:
    """Return what every query of ``(n, G, C, D_k)`` reads after the write of its token: ``(n, G, C, D_v)``."""
    queries, keys = tokens.q.flatten(0, 1), tokens.k.flatten(0, 1)
    reading = (queries @ keys.mT).tril()
    reads = torch.baddbmm(queries @ written.memories, reading, written.updates).view_as(tokens.v)
    return reads if tokens.r is None else tokens.r * reads


def _backward(tokens: Tokens, state: Tensor, d_reads: Tensor, d_state: Tensor) -> tuple[Tokens, Tensor]:
    """Return the gradients of the tokens and of the state found, from those of the reads and of the state left.

    With ``P = R dO``, ``L^T dB = dU``, ``X = lower(dO U^T)``, ``Z = strict_lower(dB U^T)``, ``Y = dB S^T``, ``A = K K^T``:

        ``dU = lower(Q K^T)^T P + K dS'``,  ``dS = dS' + Q^T P - (L^-1 E K)^T dU``        the only serial chain
        ``F = dO S^T + X K``,  ``dQ = R F``,  ``dr = rowsum(F Q)``,  ``dV = W dB``,  ``dw = rowsum(dB V)``
        ``dK = (R X)^T Q + U dS'^T - E Y - (E Z + Z^T E) K``,  ``de = -rowsum(Y K) - rowsum(Z A)``
    """
    q, k, v, r, w, e = tokens
    _, written = _write(tokens, state, _carry_in_place)
    queries, keys, values, d_read = (x.flatten(0, 1) for x in (q, k, v, d_reads))
    reads = (d_read @ written.updates.mT).tril_()  # X
    d_q = (d_read @ written.memories.mT).baddbmm_(reads, keys)
    d_r = None
    if r is not None:
        gates = r.flatten(0, 1)
        d_r = (d_q * queries).sum(-1, keepdim=True).view_as(r)
        d_q.mul_(gates)
        reads.mul_(gates)
        d_reads = r * d_reads  # P
    d_updates = (keys @ queries.mT).triu_() @ d_reads.flatten(0, 1)
    d_added, d_memories = d_updates.view_as(v), d_state.new_empty(k.shape[0] + 1, *d_state.shape)
    d_memories[-1] = d_state
    for i in reversed(range(k.shape[0])):
        d_added[i].baddbmm_(k[i], d_memories[i + 1])
        torch.baddbmm(d_memories[i + 1], q[i].mT, d_reads[i], out=d_memories[i])
        if written.erasing is not None:
            d_memories[i].baddbmm_(written.erasing[i].mT, d_added[i], alpha=-1)
    d_left = d_memories[1:].flatten(0, 1)
    d_right = d_updates if written.inverse is None else written.inverse.mT @ d_updates  # dB
    d_k = (written.updates @ d_left.mT).baddbmm_(reads.mT, queries)
    d_v = d_right * w.flatten(0, 1)
    d_w = (d_right * values).sum(-1, keepdim=True)
    d_e = None
    if e is not None:
        gates = e.flatten(0, 1)
        solving = (d_right @ written.updates.mT).tril_(-1)  # Z
        through_state = d_right @ written.memories.mT  # Y
        d_e = -(through_state * keys).sum(-1, keepdim=True) - (solving * written.products).sum(-1, keepdim=True)
        d_e = d_e.view_as(e)
        solving.mul_(gates)
        d_k.baddbmm_(solving + solving.mT, keys, alpha=-1).addcmul_(gates, through_state, value=-1)
    return Tokens(d_q.view_as(q), d_k.view_as(k), d_v.view_as(v), d_r, d_w.view_as(w), d_e), d_memories[0].clone()


class _SegmentedScan(torch.autograd.Function):
    """Forward and backward over segments of chunks; only inputs and the memory at each segment's start are kept."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        r: Tensor | None,
        w: Tensor,
        e: Tensor | None,
        state: Tensor,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        """Return reads ``(B, T, H, D_v)`` and the state left ``(G, D_k, D_v)``; keep what ``backward`` starts from."""
        tokens = Tokens(q, k, v, r, w, e)
        reads, states = torch.empty_like(v, memory_format=torch.contiguous_format), []
        for span in _segments(k, chunk):
            states.append(state)
            part = tokens.each(lambda x, span=span: _fold(x[span], chunk))  # type: ignore[misc]
            state, written = _write(part, state, _carry_in_place)
            _unfold_into(reads[span], _read(part, written))
        ctx.save_for_backward(*tokens, *states)
        ctx.chunk = chunk
        return reads, state

    @staticmethod
    def backward(ctx: Any, d_reads: Tensor, d_left: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of all inputs, walking the segments from the last to the first."""
        tokens, states = Tokens(*ctx.saved_tensors[:6]), ctx.saved_tensors[6:]
        grads, d_state = tokens.each(torch.empty_like), d_left
        # A backward that runs under autocast must not round what the forward did not.
        with torch.no_grad(), full_precision(d_reads.device):
            for span, state in zip(reversed(_segments(tokens.k, ctx.chunk)), reversed(states), strict=True):
                part = tokens.each(lambda x, span=span: _fold(x[span], ctx.chunk))  # type: ignore[misc]
                part_grads, d_state = _backward(part, state, _fold(d_reads[span], ctx.chunk), d_state)
                for whole, grad in zip(grads, part_grads, strict=True):
                    if whole is not None and grad is not None:
                        _unfold_into(whole[span], grad)
        found: tuple[Tensor | None, ...] = (*grads, d_state)
        if torch.is_grad_enabled():  # create_graph: someone may want to differentiate these
            found = _NoSecondDerivative.apply(len(found), *found, *tokens, states[0], d_reads, d_left)  # type: ignore[no-untyped-call]
        return *found, None


class _NoSecondDerivative(torch.autograd.Function):
    """Gradients as they are, on a path from all that they depend on, where a second derivative is refused.

    (torch's ``once_differentiable`` refuses on a path of its own, which ``torch.autograd.grad(outputs, inputs)`` never takes.)
    """

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the first ``count`` of the tensors; the others are what they depend on."""
        return tuple(None if x is None else x.view_as(x) for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> None:
        """Refuse."""
        raise RuntimeError('memory_scan: backend "chunk" has no second derivative: pass backend="chunk-autograd"')


def _segments(x: Tensor, chunk: int) -> list[tuple[slice, slice]]:
    """Return the segments of ``x`` ``(B, T, ...)``, each a whole number of chunks."""
    step = max(chunk, SEGMENT // chunk * chunk)
    return [(slice(None), slice(start, start + step)) for start in range(0, x.shape[1], step)]


def _fold(x: Tensor, chunk: int) -> Tensor:
    """Return ``(B, T, H, D)`` as ``(n, G, C, D)``, contiguous: chunks first, so that each one is one piece of memory."""
    return _chunks_first(x, chunk).flatten(1, 2)


def _unfold(x: Tensor, memory: Tensor) -> Tensor:
    """Return ``(n, G, C, D)`` as ``(B, T, H, D)``, with the B and H of ``memory``."""
    return x.unflatten(1, memory.shape[:2]).permute(1, 0, 3, 2, 4).flatten(1, 2)  # type: ignore[no-untyped-call]


def _unfold_into(whole: Tensor, x: Tensor) -> None:
    """Write ``(n, G, C, D)`` into ``whole`` ``(B, T, H, D)``, in one copy."""
    place = _chunks_first(whole, x.shape[2])
    place.copy_(x.view(place.shape))


def _chunks_first(x: Tensor, chunk: int) -> Tensor:
    """Return ``(B, T, H, D)`` seen as ``(n, B, H, C, D)``."""
    batch, tokens, heads, width = x.shape
    return x.view(batch, tokens // chunk, chunk, heads, width).permute(1, 0, 3, 2, 4)
