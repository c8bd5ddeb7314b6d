"""The recurrence of LSAM over time: a simple loop for autograd, and a fast loop with a hand-written backward.

Source: Nam and Seo, "Neural Attention Memory" (the ICLR 2023 submission behind arXiv 2302.09422), the LSAM cell. Per head, with
``[q; k; v; p_r; p_w]`` computed from the input and the last hidden state, the probabilities by a sigmoid::

    M_t = WR(M_(t-1), unit(k), v, p_w, p_w)        h_t = p_r M_t unit(q)

``recurrence`` chooses the loop. The fast one computes ``M_t = M_(t-1) + u_t k_t^T`` with ``u_t = p_w (v - M_(t-1) k_t)`` and keeps
``k_t`` and ``u_t``, but a memory only every ``BLOCK`` steps. Its backward recomputes the memories of a block from the kept one,
with bit-identical results. (Undoing the writes, ``M_(t-1) = M_t - u_t k_t^T``, would need no kept memory, but loses small values to
rounding after a large one.)

On a CPU the same loops run compiled (``kernel``), inside the same two operators.

Legend: ``T`` steps, ``R`` directions (1 or 2, computed in parallel), ``B`` sequences, ``H`` heads, ``e`` the width of a head,
``N = R B H``. Gates are grouped by head, so that all heads of all sequences form one batch.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fewshot_nam.memory.lsam.kernel import run_backward, run_forward
from fewshot_nam.memory.native.kernels import library_for
from fewshot_nam.memory.primitives import read, unit, write
from fewshot_nam.memory.torch_modes import full_precision, needs_plain_autograd

ValueActivation = Literal["tanh"] | None
"""The activation of a value before it is written: None, as in the paper, or ``tanh``."""

Backward = Literal["hand", "autograd"]
"""How gradients are computed: by the fast, hand-written backward, or by autograd through the simple loop."""

BLOCK = 16
"""Steps between two memories that the fast loop keeps. Its backward also holds the memories of one block."""

_EPS = 1e-12  # of unit


class Ragged(NamedTuple):
    """The positions of the tokens of a ``PackedSequence`` in ``T`` steps of ``B`` sequences, the longest first."""

    alive: Tensor
    """``(T, B)`` bool, True where there is a token."""
    tokens: Tensor
    """Indices of the tokens into the flattened ``(T B)``, in the order of packing."""
    mirror: Tensor
    """``(T B)``: the indices that reverse each sequence in time; padding keeps its place."""

    @classmethod
    def of(cls, packed: PackedSequence) -> Ragged:
        """Return the positions of the tokens of ``packed``."""
        sizes = packed.batch_sizes
        steps, batch = len(sizes), int(sizes[0])
        alive = torch.arange(batch) < sizes.unsqueeze(1)
        times = torch.arange(steps).unsqueeze(1)
        mirror = torch.where(alive, alive.sum(0) - 1 - times, times) * batch + torch.arange(batch)
        device = packed.data.device
        return cls(alive.to(device), alive.flatten().nonzero().squeeze(1).to(device), mirror.flatten().to(device))

    def stop(self, gates: Tensor, heads: int, num_gates: int = 2) -> Tensor:
        """Set the probabilities at padding to 0, so that nothing is written there and each sequence keeps its last memory."""
        per_head = torch.arange(gates.shape[-1] // heads, device=gates.device)
        probabilities = (per_head >= len(per_head) - num_gates).repeat(heads)
        return gates.masked_fill(~self.alive[:, None, :, None] & probabilities, -math.inf)

    def last(self, hiddens: Tensor) -> Tensor:
        """Return the last of ``hiddens`` ``(T, R, B, d)`` of each sequence, ``(R, B, d)``."""
        times = self.alive.sum(0) - 1
        return hiddens[times, :, torch.arange(len(times), device=times.device)].transpose(0, 1)


def backwards(x: Tensor, ragged: Ragged | None) -> Tensor:
    """Return ``x`` ``(T, B, ...)`` with each sequence reversed in time."""
    if ragged is None:
        return x.flip(0)
    return torch.unflatten(x.flatten(0, 1).index_select(0, ragged.mirror), 0, ragged.alive.shape)


def step(
    gates: Tensor, memory: Tensor, value_activation: ValueActivation = None, max_erase: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return ``h = p_r M' unit(q)`` and ``M' = WR(M, unit(k), v, p_w, p_e)``: one step of LSAM, differentiable by torch.

    Args:
        gates: ``(..., H, 3 e + 2)``: for each head ``[q | k | v | p_r | p_w]``, the probabilities before their sigmoid; then
            ``p_e = p_w``. Or ``(..., H, 3 e + 3)`` with a ``p_e`` of its own, ``max_erase`` times its sigmoid.
        memory: ``(..., H, e, e)``.
        value_activation: ``"tanh"`` or None, applied to ``v``.
        max_erase: the largest ``p_e``.

    Returns:
        The hidden state ``(..., H, e)`` and the new memory ``(..., H, e, e)``.
    """
    width = memory.shape[-1]
    num_gates = gates.shape[-1] - 3 * width
    query, key, value, probabilities = torch.split(gates, [width, width, width, num_gates], dim=-1)
    p_read, p_write, *separate = probabilities.sigmoid().unbind(-1)
    p_erase = max_erase * separate[0] if separate else p_write
    if value_activation == "tanh":
        value = value.tanh()
    memory = write(memory, unit(key), value, p_write, p_erase)
    return read(memory, unit(query), p_read), memory


def recurrence(
    gates: Tensor,
    weight: Tensor,
    hidden: Tensor,
    memory: Tensor,
    value_activation: ValueActivation = None,
    backward: Backward = "hand",
    max_erase: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return all hidden states of LSAM and its last memory: ``step`` at each ``t`` with ``gates_t + W h_(t-1)``.

    All four tensors have one dtype, float32 or float64, and one device. ``torch.func`` transforms, and ``torch.export`` with a
    fixed number of steps, always use the simple loop, which has one graph node for each operation of each step, and so do separate
    erase gates.

    Args:
        gates: ``(T, R, B, H (3 e + 2))``, or ``H (3 e + 3)`` with separate erase gates, ``T`` at least 1: the contributions of
            the inputs, each head as in ``step``.
        weight: ``(R, H (3 e + 2), H e)``, the recurrent weight ``W``, with rows in the order of ``gates``.
        hidden: ``(R, B, H e)``, the first hidden state.
        memory: ``(R, B, H, e, e)``, the first memory, values by keys.
        value_activation: ``"tanh"`` or None, applied to ``v``.
        backward: ``"hand"``, fast, without second derivatives, or ``"autograd"``, with all derivatives.
        max_erase: the largest separate erase gate.

    Returns:
        Hidden states ``(T, R, B, H e)`` and the last memory ``(R, B, H, e, e)``.
    """
    # Low precision is only for the projections: the recurrence would feed rounding errors back.
    with full_precision(gates.device):
        tied = gates.shape[-1] == memory.shape[2] * (3 * memory.shape[-1] + 2)
        # An export with any number of steps keeps the operator: a loop would fix their number.
        plain = needs_plain_autograd() and not isinstance(gates.shape[0], torch.SymInt)
        if backward == "hand" and tied and not plain:
            hiddens, last, *_ = _forward(gates, weight, hidden, memory, value_activation == "tanh")
            return hiddens, last
        return _plain_loop(gates, weight, hidden, memory, value_activation, max_erase)


def _plain_loop(
    gates: Tensor,
    weight: Tensor,
    hidden: Tensor,
    memory: Tensor,
    value_activation: ValueActivation,
    max_erase: float,
) -> tuple[Tensor, Tensor]:
    hiddens = []
    transposed = weight.mT
    # unbind: the gradient of gates[t] would be a tensor of all T steps, for each step.
    for now in gates.unbind(0):
        total = torch.baddbmm(now, hidden, transposed)
        by_head = torch.unflatten(total, -1, (memory.shape[-3], -1))
        read_out, memory = step(by_head, memory, value_activation, max_erase)
        hidden = read_out.flatten(-2)
        hiddens.append(hidden)
    return torch.stack(hiddens), memory


# An operator instead of an autograd.Function: torch.compile does not trace into it and so does not unroll the steps.
@torch.library.custom_op(
    "fewshot_nam::lsam",
    mutates_args=(),
    schema="(Tensor gates, Tensor weight, Tensor hidden, Tensor memory, bool squashed)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _forward(gates: Tensor, weight: Tensor, hidden: Tensor, memory: Tensor, squashed: bool) -> tuple[Tensor, ...]:
    """Return the hidden states, the last memory, and what the backward needs.

    The latter are the memory before each block ``(T / BLOCK + 1, N, e, e)``, and for each step: the unit query and key
    ``(T, N, 2, e)``, their lengths ``(T, N, 2, 1)``, ``v - M k`` as ``(T, N, 1, e)``, the probabilities ``p_r`` and ``p_w``
    ``(T, N, 1, 2)``, and ``v`` ``(T, N, 1, e)`` if it is squashed (else an empty tensor).
    """
    outputs = _forward_outputs(gates, hidden, memory, squashed)
    outputs[2][-1].zero_()  # the spare block: an operator returns the same every time
    if (library := library_for(gates)) is not None:
        run_forward(library, gates, weight, hidden, memory, squashed, BLOCK, outputs)
        return outputs
    hiddens, last, blocks, units, lengths, errors, probabilities, values = outputs
    steps, n, _, width = units.shape
    state = last.view(n, width, width)
    last.copy_(memory)

    # Buffers and their views are created once: at the usual sizes the overhead of a call is as large as its arithmetic.
    total, recalled, update = gates.new_empty(gates.shape[1:]), *gates.new_empty(2, n, 1, width)
    by_head = total.view(n, 1, 3 * width + 2)
    raw_units = by_head[..., : 2 * width].view(n, 2, width)
    raw_value, raw_probabilities = by_head[..., 2 * width : 3 * width], by_head[..., 3 * width :]
    written, state_t, weight_t = update.mT, state.mT, weight.mT
    each_hidden, each_query, each_key = hiddens.unbind(0), units[:, :, :1].unbind(0), units[:, :, 1:].unbind(0)
    each_read = hiddens.view(steps, n, 1, width).unbind(0)
    each_p_read, each_p_write = probabilities[..., :1].unbind(0), probabilities[..., 1:].unbind(0)
    each_units, each_length, each_error = units.unbind(0), lengths.unbind(0), errors.unbind(0)
    each_probability, each_value = probabilities.unbind(0), values.unbind(0)

    for t, now in enumerate(gates.unbind(0)):
        if t % BLOCK == 0:
            blocks[t // BLOCK] = state
        torch.baddbmm(now, hidden, weight_t, out=total)
        torch.linalg.vector_norm(raw_units, dim=-1, keepdim=True, out=each_length[t])
        length = each_length[t]
        torch.div(raw_units, length.masked_fill_(length <= _EPS, math.inf), out=each_units[t])  # as unit
        torch.sigmoid(raw_probabilities, out=each_probability[t])
        value = torch.tanh(raw_value, out=each_value[t]) if squashed else raw_value
        torch.bmm(each_key[t], state_t, out=recalled)
        torch.sub(value, recalled, out=each_error[t])
        torch.mul(each_error[t], each_p_write[t], out=update)
        state.addcmul_(written, each_key[t])
        torch.bmm(each_query[t], state_t, out=recalled)
        torch.mul(recalled, each_p_read[t], out=each_read[t])
        hidden = each_hidden[t]
    return outputs


def _forward_outputs(gates: Tensor, hidden: Tensor, memory: Tensor, squashed: bool) -> tuple[Tensor, ...]:
    """Return uninitialised tensors for all results of ``_forward``."""
    steps, width = gates.shape[0], memory.shape[-1]
    n = memory.shape[0] * memory.shape[1] * memory.shape[2]
    kept = (
        # One more than is used, so at least 2: torch.compile and torch.export would make a size of 1 a constant.
        (-(-steps // BLOCK) + 1, n, width, width),
        (steps, n, 2, width),
        (steps, n, 2, 1),
        (steps, n, 1, width),
        (steps, n, 1, 2),
        (steps * squashed, n, 1, width),
    )
    return gates.new_empty(steps, *hidden.shape), memory.new_empty(memory.shape), *(gates.new_empty(s) for s in kept)


@_forward.register_fake
def _(gates: Tensor, weight: Tensor, hidden: Tensor, memory: Tensor, squashed: bool) -> tuple[Tensor, ...]:
    return _forward_outputs(gates, hidden, memory, squashed)


@torch.library.custom_op(
    "fewshot_nam::lsam_backward",
    mutates_args=(),
    schema="(Tensor grad_hiddens, Tensor grad_memory, Tensor weight, Tensor hidden, Tensor hiddens, Tensor blocks,"
    " Tensor units, Tensor lengths, Tensor errors, Tensor probabilities, Tensor values) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    grad_hiddens: Tensor,
    grad_memory: Tensor,
    weight: Tensor,
    hidden: Tensor,
    hiddens: Tensor,
    blocks: Tensor,
    units: Tensor,
    lengths: Tensor,
    errors: Tensor,
    probabilities: Tensor,
    values: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of ``gates``, ``weight``, ``hidden`` and ``memory``.

    With ``dh`` the gradient of ``h_t`` and ``dM`` that of ``M_t``, both from later steps, and ``e = v - M_(t-1) k``::

        do = p_r dh             dM += do q^T            dq = M_t^T do           dp_r = dh . o
        du = dM k               dv = p_w du             dp_w = du . e
        dk = dM^T u - M_(t-1)^T dv                      dM -= dv k^T            (the gradient of M_(t-1))

    and for the raw ``x`` of a unit ``x / |x|``: ``(dx - x (x . dx)) / |x|``.
    """
    kept = (blocks, units, lengths, errors, probabilities, values)
    grad_gates = hiddens.new_empty(*hiddens.shape[:3], weight.shape[1])
    grad_first = torch.empty_like(grad_memory, memory_format=torch.contiguous_format)
    if (library := library_for(hiddens)) is not None:
        run_backward(library, grad_hiddens, grad_memory, weight, kept, BLOCK, grad_gates, grad_first)
    else:
        _run_backward_in_torch(grad_hiddens, grad_memory, weight, kept, grad_gates, grad_first)
    grad_hidden = torch.bmm(grad_gates[0], weight)
    # One product over all steps instead of one for each step.
    grad_weight = torch.bmm(grad_gates[0].mT, hidden)
    if len(hiddens) > 1:
        grad_weight += torch.einsum("trbc,trbd->rcd", grad_gates[1:], hiddens[:-1])
    return grad_gates, grad_weight, grad_hidden, grad_first


def _run_backward_in_torch(
    grad_hiddens: Tensor,
    grad_memory: Tensor,
    weight: Tensor,
    kept: tuple[Tensor, ...],
    grad_gates: Tensor,
    grad_first: Tensor,
) -> None:
    """Write the gradients of the gates and of the first memory, both contiguous."""
    blocks, units, lengths, errors, probabilities, values = kept
    steps, n, _, width = units.shape
    p_read, p_write = probabilities[..., :1], probabilities[..., 1:]
    updates = errors * p_write
    # dp_w of the raw gate in one product; dp_r likewise, as q . dq = p_r (dh . o).
    scaled_errors = (errors * (p_write * (1 - p_write))).mT
    read_slope = 1 - p_read
    inverse = lengths.reciprocal()  # 0 for a vector of 0, whose length is stored as infinity
    along = units * inverse
    squashed = len(values) > 0
    value_slope = 1 - values * values

    grad_hiddens = grad_hiddens.clone(memory_format=torch.contiguous_format)
    grad_first.copy_(grad_memory)
    grad_state = grad_first.view(n, width, width)
    memories = units.new_empty(min(steps, BLOCK) + 1, n, width, width).unbind(0)

    grad_read, grad_update, grad_written = (units.new_empty(n, 1, width) for _ in range(3))
    # The query's and the key's gradients are each contiguous: bmm into other tensors computes one product for each of the N.
    grad_query, grad_key = both = units.new_empty(2, n, 1, width)
    grad_units = both.squeeze(2).transpose(0, 1)
    product, projection = torch.empty_like(units[0]), torch.empty_like(inverse[0])
    read_projection = projection[:, :1]
    by_head = grad_gates.view(steps, n, 1, 3 * width + 2)
    each_grad, each_grad_units = grad_gates.unbind(0), by_head[..., : 2 * width].view(steps, n, 2, width).unbind(0)
    each_grad_value = by_head[..., 2 * width : 3 * width].unbind(0)
    each_grad_read, each_grad_write = by_head[..., 3 * width : -1].unbind(0), by_head[..., -1:].unbind(0)
    each_grad_hidden, each_dh = grad_hiddens.unbind(0), grad_hiddens.view(steps, n, 1, width).unbind(0)
    each_query, each_key, each_units = units[:, :, :1].unbind(0), units[:, :, 1:].unbind(0), units.unbind(0)
    each_update, each_written, each_scaled = updates.unbind(0), updates.mT.unbind(0), scaled_errors.unbind(0)
    each_p_read, each_p_write, each_slope = p_read.unbind(0), p_write.unbind(0), read_slope.unbind(0)
    each_inverse, each_along = inverse.unbind(0), along.unbind(0)
    each_value_slope = value_slope.unbind(0)
    grad_read_t, grad_state_t = grad_read.mT, grad_state.mT

    for t in range(steps - 1, -1, -1):
        place = t % BLOCK
        if t + 1 == steps or place + 1 == BLOCK:
            memories[0].copy_(blocks[t // BLOCK])
            for i in range(place + 1):
                torch.addcmul(memories[i], each_written[t - place + i], each_key[t - place + i], out=memories[i + 1])
        if t + 1 < steps:
            each_grad_hidden[t].baddbmm_(each_grad[t + 1], weight)
        torch.mul(each_dh[t], each_p_read[t], out=grad_read)
        grad_state.addcmul_(grad_read_t, each_query[t])
        torch.bmm(grad_read, memories[place + 1], out=grad_query)
        torch.bmm(each_key[t], grad_state_t, out=grad_update)
        torch.bmm(grad_update, each_scaled[t], out=each_grad_write[t])
        grad_value = grad_written if squashed else each_grad_value[t]
        torch.mul(grad_update, each_p_write[t], out=grad_value)
        if squashed:
            torch.mul(grad_value, each_value_slope[t], out=each_grad_value[t])
        torch.bmm(each_update[t], grad_state, out=grad_key)
        grad_key.baddbmm_(grad_value, memories[place], alpha=-1)
        grad_state.addcmul_(grad_value.mT, each_key[t], value=-1)
        torch.mul(grad_units, each_units[t], out=product)
        torch.sum(product, -1, keepdim=True, out=projection)
        torch.mul(read_projection, each_slope[t], out=each_grad_read[t])
        torch.mul(grad_units, each_inverse[t], out=each_grad_units[t])
        each_grad_units[t].addcmul_(projection, each_along[t], value=-1)


@_backward.register_fake
def _(
    grad_hiddens: Tensor,
    grad_memory: Tensor,
    weight: Tensor,
    hidden: Tensor,
    hiddens: Tensor,
    *kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gates = hiddens.new_empty(*hiddens.shape[:3], weight.shape[1])
    return (
        gates,
        weight.new_empty(weight.shape),
        hidden.new_empty(hidden.shape),
        grad_memory.new_empty(grad_memory.shape),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, weight, hidden, _, _ = inputs
    ctx.save_for_backward(weight, hidden, *output)
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, grad_hiddens: Tensor | None, grad_memory: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    weight, hidden, hiddens, last, *kept = ctx.saved_tensors
    grad_hiddens = torch.zeros_like(hiddens) if grad_hiddens is None else grad_hiddens
    grad_memory = torch.zeros_like(last) if grad_memory is None else grad_memory
    with full_precision(hiddens.device):
        return *_backward(grad_hiddens, grad_memory, weight, hidden, hiddens, *kept), None


def _raise_second_derivative(ctx: Any, *grads: Tensor | None) -> None:
    raise RuntimeError(
        'LSAM: the hand-written backward has no second derivative: construct the network with backward="autograd"'
    )


_forward.register_autograd(_differentiate, setup_context=_keep)
_backward.register_autograd(_raise_second_derivative)
