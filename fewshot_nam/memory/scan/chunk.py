"""The chunkwise-parallel memory scan: a sequence chunk by chunk, with matrix products instead of a loop over tokens.

Per head ``M_t = M_(t-1) + w_t v_t k_t^T - e_t M_(t-1) k_t k_t^T`` and ``o_t = r_t M_t q_t``. Let ``S = M^T``, and let ``u_t`` be
the update of step t, so that ``M_t = M_(t-1) + u_t k_t^T``. For a chunk of C tokens (as rows) that starts from the memory S,

    ``L U = W V - E K S``,  ``L = I + E strict_lower(K K^T)``      updates
    ``O = R (Q S + lower(Q K^T) U)``                               reads
    ``S' = S + K^T U``                                             memory after the chunk

Only ``U`` and ``S'`` depend on the chunk before. ``L`` is unit lower triangular for any gates, and no gate is divided by, so gates
of 0 and 1 are exact. ``L`` is solved as a triangular system, never by a power series, which diverges for repeated keys. With
``e = 0`` it is the identity. Source: the UT transform of the delta rule, here with two separate gates (Yang et al.,
"Parallelizing Linear Transformers with the Delta Rule over Sequence Length", 2024).

All products of a chunk are computed and then masked. So NaN or infinity in one token also spoils the reads of earlier tokens of
its chunk, where the loop would spoil only later ones. With finite inputs no token affects an earlier one.

There are two forms with the same arithmetic: ``scan_by_autograd`` leaves derivatives to torch; ``scan_by_segments`` keeps the
memory only every ``SEGMENT`` tokens and recomputes the others in a hand-written backward.

Legend: B batch, T tokens, H heads, n chunks, C tokens in a chunk, G = B * H, D_k and D_v the sizes of a key and a value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot_nam.memory.scan.kernel import kernel_for, run_backward, run_forward
from fewshot_nam.memory.torch_modes import full_precision, needs_plain_autograd

SEGMENT = 128
"""Tokens between two memories that ``scan_by_segments`` keeps. On a CPU, 128 to 256 was measured to be fastest."""


class Tokens(NamedTuple):
    """The sequence to scan. ``r`` None means a read gate of 1, ``e`` None an erase gate of 0."""

    q: Tensor  # queries (B, T, H, D_k)
    k: Tensor  # keys (B, T, H, D_k)
    v: Tensor  # values (B, T, H, D_v)
    r: Tensor | None  # read gates (B, T, H, 1)
    w: Tensor  # write gates (B, T, H, 1)
    e: Tensor | None  # erase gates (B, T, H, 1)

    def each(self, change: Callable[[Tensor], Tensor]) -> Tokens:
        """Return all tensors after ``change``."""
        q, k, v, r, w, e = self
        r, e = (None if gate is None else change(gate) for gate in (r, e))
        return Tokens(change(q), change(k), change(v), r, change(w), e)


def scan_by_autograd(tokens: Tokens, memory: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Return reads ``(B, T, H, D_v)`` and the last memory ``(B, H, D_v, D_k)``, which torch can differentiate any number of times.

    Args:
        tokens: T tokens, at least 1.
        memory: ``(B, H, D_v, D_k)``, the initial memory.
        chunk: tokens in a chunk.
    """
    length = tokens.k.shape[1]
    chunk = min(chunk, length)
    folded = tokens.each(lambda x: _fold(_padded(x, chunk), chunk))
    state, written = _write(folded, memory.mT.flatten(0, 1), _carry)
    return _unfold(_read(folded, written), memory)[:, :length], state.mT.reshape(memory.shape)


def scan_by_segments(tokens: Tokens, memory: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Return the results of ``scan_by_autograd`` for the same arguments; a second derivative raises.

    It is one operator, into which ``torch.compile`` does not trace: a compiled network takes any number of tokens. So does an
    exported one with a dynamic T. Inside ``torch.func``, and in an export with a fixed T, it is ``scan_by_autograd``.
    """
    if needs_plain_autograd() and not isinstance(tokens.k.shape[1], torch.SymInt):
        return scan_by_autograd(tokens, memory, chunk)
    reads, state, _ = _forward(*tokens, memory.mT.flatten(0, 1), chunk)
    return reads, state.mT.reshape(memory.shape)


class _Written(NamedTuple):
    """Intermediate results of n chunks, for the reads and the backward."""

    products: Tensor  # K K^T (n * G, C, C)
    inverse: Tensor | None  # L^-1 (n * G, C, C); None without erase
    erasing: Tensor | None  # L^-1 E K (n, G, C, D_k); None without erase
    updates: Tensor  # U (n * G, C, D_v)
    memories: Tensor  # the memory at the start of each chunk (n * G, D_k, D_v)


def _write(
    tokens: Tokens,
    state: Tensor,
    carry: Callable[[Tensor, Tensor, Tensor | None, Tensor], tuple[Tensor, Tensor, Tensor]],
) -> tuple[Tensor, _Written]:
    """Return the last state ``(G, D_k, D_v)`` and the intermediate results.

    Tokens are ``(n, G, C, .)``, the initial state is ``(G, D_k, D_v)``, and ``carry`` computes the serial part.
    """
    _, k, v, _, w, e = tokens
    keys = k.flatten(0, 1)
    products = keys @ keys.mT
    updates = (w * v).flatten(0, 1)
    inverse = erasing = None
    if e is not None:
        gates = e.flatten(0, 1)
        exact = _exact_dtype(e)
        wide = keys.to(exact)
        overlaps = products if wide is keys else wide @ wide.mT
        # The solver reads only the strict lower part and uses 1 as the diagonal.
        eye = torch.eye(k.shape[2], dtype=exact, device=k.device).expand_as(products)
        inverse = torch.linalg.solve_triangular(gates.to(exact) * overlaps, eye, upper=False, unitriangular=True)
        updates = _times(inverse, updates)
        erasing = _times(inverse * gates.mT, keys).view_as(k)
    state, updates, memories = carry(k, updates.view_as(v), erasing, state)
    return state, _Written(products, inverse, erasing, updates.flatten(0, 1), memories.flatten(0, 1))


def _exact_dtype(e: Tensor) -> torch.dtype:
    """Return the dtype in which a chunk's triangular system is solved: float64 where an erase gate is above 1.

    There the entries of ``L^-1`` alternate in sign without shrinking, and in float32 repeated keys would cost three digits.
    """
    readable = e.device.type != "meta" and not torch.compiler.is_compiling() and not needs_plain_autograd()
    return torch.float64 if readable and bool((e > 1).any()) else e.dtype


def _times(exact: Tensor, x: Tensor) -> Tensor:
    """Return ``exact @ x``, computed in the dtype of ``exact``, in that of ``x``."""
    return (exact @ x.to(exact.dtype)).to(x.dtype)


def _carry(k: Tensor, updates: Tensor, erasing: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the last state, the updates after erasing, and the state at the start of each chunk: the serial part."""
    found, added = [], []
    for i, (k_i, u_i) in enumerate(zip(k.unbind(0), updates.unbind(0), strict=True)):
        found.append(state)
        if erasing is not None:
            u_i = torch.baddbmm(u_i, erasing[i], state, alpha=-1)
        added.append(u_i)
        state = torch.baddbmm(state, k_i.mT, u_i)
    return state, torch.stack(added), torch.stack(found)


def _carry_in_place(k: Tensor, updates: Tensor, erasing: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same as ``_carry``, with the updates overwritten: fewer copies, where autograd does not record."""
    memories = state.new_empty(k.shape[0] + 1, *state.shape)
    memories[0] = state
    for i in range(k.shape[0]):
        if erasing is not None:
            updates[i].baddbmm_(erasing[i], memories[i], alpha=-1)
        torch.baddbmm(memories[i], k[i].mT, updates[i], out=memories[i + 1])
    # A copy, so that keeping the last state does not keep all of them in memory.
    return memories[-1].clone(), updates, memories[:-1]


def _read(tokens: Tokens, written: _Written) -> Tensor:
    """Return the reads ``(n, G, C, D_v)`` of the queries ``(n, G, C, D_k)``, each after the write of its token."""
    queries, keys = tokens.q.flatten(0, 1), tokens.k.flatten(0, 1)
    reading = (queries @ keys.mT).tril()
    reads = torch.baddbmm(queries @ written.memories, reading, written.updates).view_as(tokens.v)
    return reads if tokens.r is None else tokens.r * reads


def _backward(tokens: Tokens, state: Tensor, d_reads: Tensor, d_state: Tensor) -> tuple[Tokens, Tensor]:
    """Return the gradients of the tokens and of the initial state, from those of the reads and of the last state.

    With ``P = R dO``, ``L^T dB = dU``, ``X = lower(dO U^T)``, ``Z = strict_lower(dB U^T)``, ``Y = dB S^T``, ``A = K K^T``:

        ``dU = lower(Q K^T)^T P + K dS'``,  ``dS = dS' + Q^T P - (L^-1 E K)^T dU``        the only serial part
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
    d_right = d_updates if written.inverse is None else _times(written.inverse.mT, d_updates)  # dB
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


# An operator instead of an autograd.Function: torch.compile does not trace into it and so does not unroll the chunks.
@torch.library.custom_op(
    "fewshot_nam::memory_scan",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor? r, Tensor w, Tensor? e, Tensor state, int chunk)"
    " -> (Tensor, Tensor, Tensor)",
)
def _forward(
    q: Tensor, k: Tensor, v: Tensor, r: Tensor | None, w: Tensor, e: Tensor | None, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return reads ``(B, T, H, D_v)``, the last state ``(G, D_k, D_v)``, and all states between segments."""
    tokens = Tokens(q, k, v, r, w, e)
    reads, last, states = _forward_outputs(v, state, chunk)
    chunk = min(chunk, v.shape[1])
    if (library := kernel_for(v, state)) is not None:
        states[0] = state
        run_forward(library, tokens, states, reads, _segment_length(chunk))
        return reads, last.copy_(states[-1]), states
    for number, span in enumerate(_segments(v.shape[1], chunk)):
        states[number] = state
        part = tokens.each(lambda x, span=span: _fold(_padded(x[span], chunk), chunk))  # type: ignore[misc]
        state, written = _write(part, state, _carry_in_place)
        _unfold_into(reads[span], _read(part, written))
    states[-1] = state
    return reads, last.copy_(state), states


def _forward_outputs(v: Tensor, state: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return uninitialised tensors for all results of ``_forward``."""
    step = _segment_length(chunk)
    segments = (v.shape[1] + step - 1) // step
    # With the last state there are at least 2: torch.compile and torch.export would make a size of 1 a constant.
    return v.new_empty(v.shape), state.new_empty(state.shape), state.new_empty(segments + 1, *state.shape)


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, r: Tensor | None, w: Tensor, e: Tensor | None, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    return _forward_outputs(v, state, chunk)


@torch.library.custom_op(
    "fewshot_nam::memory_scan_backward",
    mutates_args=(),
    schema="(Tensor d_reads, Tensor d_left, Tensor q, Tensor k, Tensor v, Tensor? r, Tensor w, Tensor? e, Tensor states,"
    " int chunk) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward_of_scan(
    d_reads: Tensor,
    d_left: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor | None,
    w: Tensor,
    e: Tensor | None,
    states: Tensor,
    chunk: int,
) -> tuple[Tensor, ...]:
    """Return the gradients of the inputs of ``_forward``, from the last segment to the first; empty tensors for no gates."""
    tokens = Tokens(q, k, v, r, w, e)
    *grads, d_first = _backward_outputs(tokens, d_left)
    d_state, chunk = d_left, min(chunk, v.shape[1])
    if (library := kernel_for(v, d_left)) is not None:
        run_backward(library, tokens, states, d_reads, d_first.copy_(d_left), grads, _segment_length(chunk))
        return *grads, d_first
    spans = _segments(v.shape[1], chunk)
    for span, state in zip(reversed(spans), reversed(states[:-1].unbind(0)), strict=True):
        part = tokens.each(lambda x, span=span: _fold(_padded(x[span], chunk), chunk))  # type: ignore[misc]
        part_grads, d_state = _backward(part, state, _fold(_padded(d_reads[span], chunk), chunk), d_state)
        for whole, grad in zip(grads, part_grads, strict=True):
            if grad is not None:
                _unfold_into(whole[span], grad)
    return *grads, d_first.copy_(d_state)


def _backward_outputs(tokens: Tokens, d_left: Tensor) -> tuple[Tensor, ...]:
    """Return uninitialised tensors for all results of ``_backward_of_scan``."""
    grads = [tokens.v.new_empty(0) if x is None else x.new_empty(x.shape) for x in tokens]
    return *grads, d_left.new_empty(d_left.shape)


@_backward_of_scan.register_fake
def _(d_reads: Tensor, d_left: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return _backward_outputs(Tokens(*inputs[:6]), d_left)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tokens, _, ctx.chunk = inputs
    ctx.save_for_backward(*tokens, output[2])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, d_reads: Tensor | None, d_left: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    *tokens, states = ctx.saved_tensors  # once: under activation checkpointing a second access raises
    d_reads = torch.zeros_like(tokens[2]) if d_reads is None else d_reads
    d_left = torch.zeros_like(states[0]) if d_left is None else d_left
    # A backward under autocast must not round what the forward did not round.
    with full_precision(d_reads.device):
        *grads, d_state = _backward_of_scan(d_reads, d_left, *tokens, states, ctx.chunk)
    return *(None if x is None else grad for x, grad in zip(tokens, grads, strict=True)), d_state, None


def _raise_second_derivative(ctx: Any, *grads: Tensor | None) -> None:
    raise RuntimeError('memory_scan: backend "chunk" has no second derivative: pass backend="chunk-autograd"')


_forward.register_autograd(_differentiate, setup_context=_keep)
_backward_of_scan.register_autograd(_raise_second_derivative)


def _segment_length(chunk: int) -> int:
    """Return the tokens of a segment, a whole number of chunks."""
    return max(chunk, SEGMENT // chunk * chunk)


def _segments(length: int, chunk: int) -> list[tuple[slice, slice]]:
    """Return the segments of ``length`` tokens as indices into ``(B, T, ...)``."""
    step = _segment_length(chunk)
    return [(slice(None), slice(start, start + step)) for start in range(0, length, step)]


def _padded(x: Tensor, chunk: int) -> Tensor:
    """Return ``x`` ``(B, T, H, D)`` with zeros appended, so that T is a multiple of ``chunk``."""
    missing = -x.shape[1] % chunk
    return F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x


def _fold(x: Tensor, chunk: int) -> Tensor:
    """Return ``(B, T, H, D)`` as ``(n, G, C, D)``, contiguous, so that each chunk is one block of memory."""
    return _chunks_first(x, chunk).flatten(1, 2)


def _unfold(x: Tensor, memory: Tensor) -> Tensor:
    """Return ``(n, G, C, D)`` as ``(B, T, H, D)``, with the B and H of ``memory``."""
    return x.unflatten(1, memory.shape[:2]).permute(1, 0, 3, 2, 4).flatten(1, 2)  # type: ignore[no-untyped-call]


def _unfold_into(whole: Tensor, x: Tensor) -> None:
    """Copy ``(n, G, C, D)`` into ``whole`` ``(B, T, H, D)``, without the padding of the last chunk."""
    batch, length, heads, _ = whole.shape
    if length % x.shape[2]:
        whole.copy_(x.unflatten(1, (batch, heads)).permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :length])  # type: ignore[no-untyped-call]
    else:
        place = _chunks_first(whole, x.shape[2])
        place.copy_(x.view(place.shape))


def _chunks_first(x: Tensor, chunk: int) -> Tensor:
    """Return a view of ``(B, T, H, D)`` as ``(n, B, H, C, D)``."""
    batch, tokens, heads, width = x.shape
    return x.view(batch, tokens // chunk, chunk, heads, width).permute(1, 0, 3, 2, 4)
