"""The SAM-based two-memory model (STM): an item memory for what came, a relational memory for how it belongs together.

Source: Le, Tran and Venkatesh, "Self-Attentive Associative Memory" (ICML 2020), section 3, and the authors' code. With an item
memory ``I (d x d)`` and a relational memory ``R (n x d x d)``, one step on an input ``x`` is, as in the code::

    a = f_1 x      b = f_2 x      c = softmax(f_3 x)                   f: linear, d, d and n features
    X = a a^T
    [g_i | g_f] = tanh(I) W^T + U a                                    U a is added to every row
    I' = sigmoid(g_i + beta_i) * tanh(X) + sigmoid(g_f + beta_f) * I   without gates: I' = I + X
    r = sum_s c_s R_s^T b                                              read
    A = SAM(I' + alpha_2 r b^T)                                        see ``SelfAttentiveMemory``
    I <- I' + alpha_3 (G_1 A)                                          transfer: G_1 is linear, from n d to d, for each column of A
    R <- alpha_1 R + A
    o = MLP(G_3 [G_2 R_1; ...; G_2 R_n])                               output: G linear

The text and the code differ in six points, which are the two presets:

====================  =================================  ==================================
point                 ``"paper"``                        ``"code"``
====================  =================================  ==================================
write                 ``X = a b^T``                      ``X = a a^T``
tanh of a write       no                                 ``tanh(X)`` under gates
read                  ``r = sum_s c_s R_s b``            ``r = sum_s c_s R_s^T b``
norm in SAM           queries, keys and values each      all together
transfer              from the new ``R``, after it       from ``A``, before it
``alpha_1``           ``R <- R + alpha_1 A``             ``R <- alpha_1 R + A``
====================  =================================  ==================================

In the code ``alpha`` are learned from 0. Under ``"paper"`` ``alpha_1`` is learned from 1 here: from 0, the first outputs would not
depend on the input. Departure from both: where a weight ``alpha`` is the constant 0, its part of the step is left out.

In time, the projections of inputs and the multilayer perceptron run for all steps at once. Under ``"code"``, ``A`` stays a sum of
``n`` outer products: the transfer costs ``n^2 d^2`` products for an input instead of ``n d^3``, and where outputs are needed at few
steps (``output_steps``), the relational memory is computed once for up to ``d / n`` steps.

Rounding errors can grow from step to step. With random weights, all ``alpha`` 0.3, ``d = 48`` and ``n = 8``, another order of
sums changed outputs (of up to 0.38) within 31 steps by up to 0.07 in float32, and by 2e-10 in float64: compare in float64.

Legend: ``B`` sequences, ``T`` steps, ``D`` input size, ``d`` width of the memories, ``n`` slots of the relational memory.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewshot_nam.memory.associative import PRESET_NORMS, SelfAttentiveMemory, bindings, check_sizes
from fewshot_nam.memory.stm.item_write import write_item
from fewshot_nam.memory.torch_modes import full_precision, needs_plain_autograd
from fewshot_nam.memory.validation import check_alike, check_mask, check_tensor

Preset = Literal["paper", "code"]


class STMState(NamedTuple):
    """What an STM keeps between steps.

    Attributes:
        item: ``(B, d, d)``, the item memory.
        relational: ``(B, n, d, d)``, the relational memory.
    """

    item: Tensor
    relational: Tensor


class _Controls(NamedTuple):
    """What an input does at one step: ``a``, ``b``, ``c`` of the equations, and what it adds to the gates, if there are any."""

    a: Tensor
    b: Tensor
    c: Tensor
    gates: Tensor | None


class STM(nn.Module):
    """The SAM-based two-memory model: ``(B, T, input_size)`` to ``(B, T, output_size)``.

    Args:
        input_size: ``D``, width of an input, at least 1.
        output_size: width of an output, at least 1.
        memory_size: ``d``, rows and columns of the memories. Default 96.
        num_slots: ``n``, slots of the relational memory, and queries, keys and values of SAM. Default 8.
        relation_size: features that ``G_2`` reads from a slot. Default 96.
        readout_size: features that ``G_3`` makes of all slots. Default 64.
        hidden_size: width of the two hidden layers of the multilayer perceptron. Default 128.
        preset: ``"paper"`` or ``"code"``, see the module. Default ``"code"``, with which the published figures were made.
        gates: whether the item memory has gates. (The published runs of N-th farthest have none.) Default True.
        alphas: ``alpha_1`` (history of the relational memory), ``alpha_2`` (relations in SAM's input) and ``alpha_3`` (transfer):
            a constant each, or None to learn it. Default: all are learned.
        device: where the parameters are.
        dtype: dtype of the parameters.

    Raises:
        ValueError: a size below 1, an unknown preset, or not three alphas.

    Example:
        >>> stm = STM(input_size=10, output_size=5, memory_size=16, num_slots=2)
        >>> outputs, state = stm(torch.randn(3, 7, 10))
        >>> outputs.shape
        torch.Size([3, 7, 5])
        >>> output, state = stm.step(torch.randn(3, 10), state)  # one more input
        >>> output.shape
        torch.Size([3, 5])
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        memory_size: int = 96,
        num_slots: int = 8,
        *,
        relation_size: int = 96,
        readout_size: int = 64,
        hidden_size: int = 128,
        preset: Preset = "code",
        gates: bool = True,
        alphas: tuple[float | None, float | None, float | None] = (None, None, None),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "output_size": output_size, "memory_size": memory_size}
        sizes |= {"num_slots": num_slots, "relation_size": relation_size}
        check_sizes("STM", **sizes, readout_size=readout_size, hidden_size=hidden_size)
        if preset not in PRESET_NORMS:
            raise ValueError(f"STM: preset must be one of {', '.join(PRESET_NORMS)}, got {preset!r}")
        if not isinstance(alphas, (tuple, list)) or len(alphas) != 3:
            raise ValueError(f"STM: alphas must be three numbers, or None for what is learned, got {alphas!r}")
        self.input_size, self.output_size = input_size, output_size
        self.memory_size, self.num_slots = memory_size, num_slots
        self.preset: Preset = preset
        self.gates = gates

        def linear(wide: int, out: int) -> nn.Linear:
            return nn.Linear(wide, out, device=device, dtype=dtype)

        width = memory_size
        self.first, self.second, self.address = (linear(input_size, out) for out in (width, width, num_slots))
        self.input_gates = linear(width, 2 * width) if gates else None
        self.memory_gates = linear(width, 2 * width) if gates else None
        # (beta_i, beta_f): at first more is kept than forgotten.
        self.gate_bias = nn.Parameter(torch.tensor([0.0, 1.0], device=device, dtype=dtype)) if gates else None
        self.relate = SelfAttentiveMemory(width, num_slots, preset=preset, device=device, dtype=dtype)
        self.transfer = linear(num_slots * width, width) if alphas[2] != 0 else None
        self.read_slot = linear(width * width, relation_size)
        self.join_slots = linear(num_slots * relation_size, readout_size)
        self.output = nn.Sequential(
            linear(readout_size, hidden_size),
            nn.ReLU(),
            linear(hidden_size, hidden_size),
            nn.ReLU(),
            linear(hidden_size, output_size),
        )
        self.item = nn.Parameter(torch.empty(width, width, device=device, dtype=dtype))
        self.relational = nn.Parameter(torch.empty(num_slots, width, width, device=device, dtype=dtype))
        nn.init.uniform_(self.item, -((2 * width) ** -0.5), (2 * width) ** -0.5)
        bound = (2 * width + num_slots) ** -0.5
        nn.init.uniform_(self.relational, -bound, bound)
        starts = (1.0 if preset == "paper" else 0.0, 0.0, 0.0)
        self.alphas: list[float | None] = [None if alpha is None else float(alpha) for alpha in alphas]
        for number, (alpha, start) in enumerate(zip(alphas, starts, strict=True), start=1):
            learned = nn.Parameter(torch.tensor(start, device=device, dtype=dtype)) if alpha is None else None
            self.register_parameter(f"alpha_{number}", learned)

    def init_state(self, batch_size: int) -> STMState:
        """Return the state before the first step, which is learned, for ``batch_size`` sequences.

        Raises:
            ValueError: a batch size below 1.
        """
        check_sizes("STM.init_state", batch_size=batch_size)
        return self._first_state(batch_size)

    def forward(
        self,
        x: Tensor,
        state: STMState | None = None,
        mask: Tensor | None = None,
        *,
        output_steps: Tensor | None = None,
    ) -> tuple[Tensor, STMState]:
        """Return the outputs, and the state after the last step.

        Args:
            x: ``(B, T, input_size)``; at least one step.
            state: the result of an earlier call; default: ``init_state``.
            mask: ``(B, T)`` bool, True where there is an input; elsewhere the state stays as it is and the output is 0.
            output_steps: ``(T,)`` bool, True at steps whose outputs are needed; the other outputs are 0. To read the relational
                memory out is most of the cost of a step. Default: all.

        Returns:
            ``(B, T, output_size)`` in the dtype of the projections, and the state, in float32 at least.

        Raises:
            TypeError: a dtype does not fit.
            ValueError: a shape or device does not fit, or ``T`` is dynamic in ``torch.export``.
        """
        check_tensor("STM", "x", x, ("B", "T", self.input_size))
        batch, steps, _ = x.shape
        if isinstance(steps, torch.SymInt) and needs_plain_autograd():
            raise ValueError(
                "STM: an export fixes the number of steps T: make that dimension of x static, or export the method step"
            )
        if steps < 1:
            raise ValueError(f"STM: x must have at least one step, got shape {tuple(x.shape)}")
        state = self._admit("STM", x, state)
        present: tuple[Tensor | None, ...] = (None,) * steps
        if mask is not None:
            check_mask("STM", "mask", mask, (batch, steps))
            check_alike("STM", dtype=False, x=x, mask=mask)
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)  # padding may hold NaN
            present = mask.unbind(1)
        needed = [True] * steps
        if output_steps is not None:
            check_mask("STM", "output_steps", output_steps, (steps,))
            needed = output_steps.tolist()
        controls, kind = self._controls(x, state.item.dtype)
        readouts = []
        with full_precision(x.device):
            for chunk in self._chunks(needed, mask is not None):
                after = self._advance(controls[chunk], state)
                if needed[chunk.stop - 1]:
                    readouts.append(self._read_out(after.relational))
                here = present[chunk.start]
                if here is not None:
                    kept = here[:, None, None]
                    item = torch.where(kept, after.item, state.item)
                    after = STMState(item, torch.where(kept.unsqueeze(1), after.relational, state.relational))
                state = after
        outputs: Tensor
        if readouts:
            outputs = self.output(torch.stack(readouts, dim=1).to(kind))
        else:
            outputs = x.new_zeros(batch, 0, self.output_size, dtype=kind)
        if output_steps is not None:
            at = output_steps.nonzero().squeeze(1)
            outputs = outputs.new_zeros(batch, steps, self.output_size).index_copy(1, at, outputs)
        return outputs if mask is None else outputs.masked_fill(~mask.unsqueeze(-1), 0.0), state

    def step(self, x: Tensor, state: STMState) -> tuple[Tensor, STMState]:
        """Return the output ``(B, output_size)`` for one input ``(B, input_size)``, and the state after it.

        Raises:
            TypeError: a dtype does not fit.
            ValueError: a shape or device does not fit.
        """
        check_tensor("STM.step", "x", x, ("B", self.input_size))
        outputs, state = self(x.unsqueeze(1), state)
        return outputs.squeeze(1), state

    def _controls(self, x: Tensor, dtype: torch.dtype) -> tuple[list[_Controls], torch.dtype]:
        """Return what inputs ``(B, T, D)`` do at each step, in ``dtype``, and the dtype of the projections."""
        a, b, c = self.first(x), self.second(x), self.address(x).softmax(-1)
        driven: tuple[Tensor | None, ...] = (None,) * x.shape[1]
        if self.input_gates is not None and self.memory_gates is not None and self.gate_bias is not None:
            bias = self.memory_gates.bias + self.gate_bias.repeat_interleave(self.memory_size)
            driven = (self.input_gates(a) + bias).to(dtype).unbind(1)
        by_step = zip(*(part.to(dtype).unbind(1) for part in (a, b, c)), driven, strict=True)
        return [_Controls(*now) for now in by_step], a.dtype

    def _chunks(self, needed: list[bool], masked: bool) -> list[slice]:
        """Return spans of steps after each of which the relational memory is computed: where it is read out, and in between.

        Within a chunk its ``n`` outer products a step stay apart. That pays while there are fewer of them than ``d``. Under
        ``"paper"`` the transfer reads the whole relational memory at every step.
        """
        longest = 1 if masked or self.preset == "paper" else max(1, self.memory_size // self.num_slots)
        chunks, start = [], 0
        for stop, read in enumerate(needed, start=1):
            if read or stop - start == longest or stop == len(needed):
                chunks.append(slice(start, stop))
                start = stop
        return chunks

    def _advance(self, steps: list[_Controls], state: STMState) -> STMState:
        """Return the state after the steps of one chunk."""
        item, relational = state
        alpha_1, alpha_2, alpha_3 = (self._alpha(number, item) for number in (1, 2, 3))
        left = self._left(alpha_1, len(steps), item)
        project = self.relate.projection.weight.to(item.dtype)
        if alpha_2 is not None:
            b, addresses = self._addresses(steps)
            # What each step still to come reads of the relations so far, and the part of b in the projection of r b^T.
            reads = left[1:].flip(0).unsqueeze(1) * self._read(b, addresses, relational)
            along = F.linear(b, alpha_2 * project)
        history: list[
            tuple[Tensor, Tensor]
        ] = []  # bindings (B, n, n d) and values (B, n, d) of the steps of this chunk
        for number, now in enumerate(steps):
            item = self._write_item(now, item)
            projected = _linear(item, self.relate.projection)
            if alpha_2 is not None:  # of I' + alpha_2 r b^T, which itself is not needed
                projected = torch.addcmul(projected, reads[:, 0].unsqueeze(2), along[:, number].unsqueeze(1))
            q, k, v = self.relate.normalise(projected)
            bound = bindings(q, k)
            history.append((bound, v))
            if alpha_2 is not None and number + 1 < len(steps):
                found = bound @ addresses[:, number + 1 :].mT * left[number + 2 :].flip(0)
                reads = torch.baddbmm(reads[:, 1:], found.mT, v)
            if alpha_3 is not None and self.transfer is not None and self.preset == "code":
                weight, bias = self.transfer.weight.to(item.dtype), self.transfer.bias.to(item.dtype)
                # G_1 of the bindings of each value, and then of the values: the same sum in another order.
                moved = torch.cat([F.linear(bound, weight), bias.expand(v.shape[0], 1, -1)], dim=1)
                item = torch.baddbmm(item, F.pad(v, (0, 0, 0, 1), value=1.0).mT, alpha_3 * moved)
        relational = self._write_relations(relational, history, left, alpha_1)
        if alpha_3 is not None and self.transfer is not None and self.preset == "paper":
            moved = _linear(relational.flatten(1, 2).mT, self.transfer)
            item = torch.addcmul(item, alpha_3, moved)
        return STMState(item, relational)

    def _write_item(self, now: _Controls, item: Tensor) -> Tensor:
        """Return the item memory after the write of one input."""
        a, b, _, driven = now
        columns = b if self.preset == "paper" else a
        if driven is None or self.memory_gates is None:
            return item + a.unsqueeze(2) * columns.unsqueeze(1)
        weight = self.memory_gates.weight.to(item.dtype)
        return write_item(item, a, columns, driven, weight, squashed=self.preset == "code")

    def _addresses(self, steps: list[_Controls]) -> tuple[Tensor, Tensor]:
        """Return ``b`` of some steps ``(B, steps, d)``, and their addresses, ``c b^T`` as rows, ``(B, steps, n d)``."""
        b, c = torch.stack([now.b for now in steps], dim=1), torch.stack([now.c for now in steps], dim=1)
        return b, (c.unsqueeze(3) * b.unsqueeze(2)).flatten(2)

    def _read(self, b: Tensor, addresses: Tensor, relational: Tensor) -> Tensor:
        """Return what the relational memory holds at the addresses of some steps, ``(B, steps, d)``."""
        if self.preset == "paper":
            return torch.einsum("btsn,bsen->bte", torch.unflatten(addresses, 2, (self.num_slots, -1)), relational)
        return addresses @ relational.flatten(1, 2)

    def _left(self, alpha_1: Tensor | None, steps: int, like: Tensor) -> Tensor:
        """Return which part of the relations of step 0, 1, ... is left after ``steps - 1``, and, first, of those before: powers."""
        if self.preset == "paper" or steps == 1:  # of one step, all is left
            return like.new_ones(steps + 1)
        base = like.new_zeros(()) if alpha_1 is None else alpha_1
        return base ** torch.arange(steps, -1, -1, device=like.device)

    def _write_relations(
        self, relational: Tensor, history: list[tuple[Tensor, Tensor]], left: Tensor, alpha_1: Tensor | None
    ) -> Tensor:
        """Return the relational memory after the steps of a chunk."""
        bound, v = history[-1]
        if len(history) > 1 and alpha_1 is not None:
            bound, v = (torch.cat(parts, dim=1) for parts in zip(*history, strict=True))
            v = v * left[1:].repeat_interleave(self.num_slots).unsqueeze(1)
        fresh = torch.unflatten(bound.mT @ v, 1, (self.num_slots, self.memory_size))
        if alpha_1 is None:
            return relational if self.preset == "paper" else fresh
        if self.preset == "paper":
            return relational + alpha_1 * fresh
        return torch.addcmul(fresh, left[0] if len(history) > 1 else alpha_1, relational)

    def _read_out(self, relational: Tensor) -> Tensor:
        """Return ``G_3 [G_2 R_1; ...; G_2 R_n]``, ``(B, readout_size)``."""
        return _linear(_linear(relational.flatten(2), self.read_slot).flatten(1), self.join_slots)

    def _alpha(self, number: int, like: Tensor) -> Tensor | None:
        """Return a weight in the dtype of ``like``, or None where it is the constant 0."""
        fixed = self.alphas[number - 1]
        if fixed is not None:
            return like.new_tensor(fixed) if fixed else None
        learned: Tensor = getattr(self, f"alpha_{number}")
        return learned.to(like.dtype)

    def _admit(self, where: str, x: Tensor, state: object) -> STMState:
        """Check ``x`` and ``state``, and return ``state`` in at least the model's precision."""
        kind = x.device.type
        mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        check_alike(where, dtype=not mixed, x=x, weights=self.item)
        if state is None:
            return self._first_state(x.shape[0])
        if not isinstance(state, STMState):
            raise TypeError(f"{where}: state must be an STMState, of init_state, got {type(state).__name__}")
        square = (self.memory_size, self.memory_size)
        check_tensor(where, "state.item", state.item, (x.shape[0], *square))
        check_tensor(where, "state.relational", state.relational, (x.shape[0], self.num_slots, *square))
        check_alike(where, item=state.item, relational=state.relational)
        check_alike(where, dtype=False, x=x, state=state.item)
        return STMState(*(part.to(torch.promote_types(part.dtype, self._state_dtype())) for part in state))

    def _first_state(self, batch_size: int) -> STMState:
        kind = self._state_dtype()
        return STMState(*(part.to(kind).expand(batch_size, *part.shape) for part in (self.item, self.relational)))

    def _state_dtype(self) -> torch.dtype:
        return torch.promote_types(self.item.dtype, torch.float32)

    def extra_repr(self) -> str:
        """Return sizes and options."""
        return (
            f"{self.input_size}, {self.output_size}, memory_size={self.memory_size}, num_slots={self.num_slots}, "
            f"preset={self.preset!r}, gates={self.gates}, alphas={tuple(self.alphas)}"
        )


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """Return the layer's output in the dtype of ``x``, which is that of the memories."""
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))
