"""The NAM Turing Machine: tapes that are Neural Attention Memories, read and written at the positions of soft heads.

Source: Nam and Seo, "Neural Attention Memory" (arXiv 2302.09422, and the ICLR-2023 submission of that name). From an input
``x_t`` and the features ``u_t`` of a controller, with all vectors for each tape and ``mu`` normalising a vector to length 1:

    v = W_v x      k = mu(W_k x)      q = mu(W_q u)      [actions of the read head | of the write head | gates] = W_a u

Actions pass through a softmax, gates through a sigmoid. With heads ``r, w`` over the ``L`` cells, the value tape
``V (L x c)`` and the key tape ``K (L x c)``, one step is

    write    V <- V + w (p_w v - p_e V^T w)^T
    read     y = p_r V^T r
    key      K <- K + w (p_w k - p_e K^T w)^T      by position, or      K <- K + (p_w w - p_e K k) k^T      by key
    move     r <- p_left roll(r, -1) + p_noop r + p_right roll(r, 1) + p_jump K q,  and w likewise by actions of its own

and a last linear layer combines the reads of all tapes. A tape starts empty, a head on cell 0. A tape is stored as its transpose,
which is the ``(D_v, D_k)`` memory of the rest of the library with cells as keys. The paper and the two published versions of its
code differ in five points: see ``TuringPreset``.

Differences from all of them: a write head moves from its own position (in the code of 2022, LEFT and RIGHT moved it to the
neighbours of the read head); head and controller states are arguments and results; and a tape is by default as long as the
sequence, where the code had 32 cells that longer sequences wrapped around.

One machine is one layer. Stack them as modules. A second layer of the 2022 code starts with the value tape of the first one:
``second(x, second.initial_state(B, L)._replace(value_tape=state_of_first.value_tape))``.

Legend: ``B`` sequences, ``T`` steps, ``L`` cells of a tape, ``c`` width of a cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor, nn

from fewshot_nam.memory.primitives import read, unit, write
from fewshot_nam.memory.scan.scan import memory_scan
from fewshot_nam.memory.short_convolution import ShortConvolution, check_conv_size
from fewshot_nam.memory.torch_modes import full_precision, needs_plain_autograd
from fewshot_nam.memory.turing.controllers import build_controller, is_causal, run_controller
from fewshot_nam.memory.turing.heads import (
    Action,
    HeadContext,
    Jump,
    action_name,
    head_positions,
    move,
    resolve_actions,
)
from fewshot_nam.memory.turing.kernel import KernelFlags, kernel_takes, run_by_kernel
from fewshot_nam.memory.turing.key_tape import KeyControls, write_key
from fewshot_nam.memory.turing.presets import resolve_preset
from fewshot_nam.memory.turing.state import Controls, TuringState, TuringTrace, admit_state, check_size, trace_of
from fewshot_nam.memory.validation import check_alike, check_mask, check_tensor

_SHORTEST_TAPE = 32  # the fixed length in the published code


class NAMTuringMachine(nn.Module):
    """A NAM Turing Machine: ``(B, T, input_size)`` to ``(B, T, input_size)``.

    Heads do not keep unit length by themselves: mixing actions shrinks them, and the result of JUMP is signed and of any length.
    With ``head_norm="none"``, a head longer than ``sqrt(2)`` erases more than is stored, and tapes can grow without bound.
    ``"access"`` (of preset ``"neurips2023"``) bounds what is written and read, but not the heads: within some thousand steps
    they can shrink until every read is 0, or grow until all is NaN, without an error. ``"state"``, the default, keeps them at
    length 1.

    Args:
        input_size: width of inputs and outputs.
        num_tapes: number of pairs of value and key tape, each with a read and a write head.
        tape_width: ``c``, width of a cell; default ``input_size / num_tapes``, which must be a whole number.
        hidden_size: width of the controller's features; default ``input_size``.
        tape_length: ``L``, cells of a tape; no parameter depends on it. Tapes are circular, so that outputs depend on ``L`` once
            heads wrap around. Default None is ``max(32, T)``, chosen when a call starts without a state: then results depend on
            how far a batch is padded and on how a sequence is split. Pass a length if you pad or resume sequences.
        preset: ``"paper"``, ``"iclr2022"`` or ``"neurips2023"``; default: ``"neurips2023"`` with ``head_norm="state"``. The next
            six arguments override it. See ``TuringPreset``.
        controller: a name, or a module with the interface of ``torch.nn.GRU(batch_first=True)`` and ``hidden_size`` output
            features. A module that reads later tokens must have an attribute ``bidirectional = True``.
        actions: names and your own transitions, see ``Action``. The parameters of a transition that is a module are trained too.
        erase: ``"tied"`` or ``"separate"``.
        key_erase: ``"position"`` or ``"key"``.
        head_norm: ``"none"``, ``"access"`` or ``"state"``.
        order: ``"read_first"`` or ``"write_first"``.
        move_noise: standard deviation of the normal noise that is added to the logits of actions in training mode; at least 0.
            Moves that blur a little at every step are lost on long sequences. Noise makes a machine learn moves that are nearly
            certain, as it does for binary codes (Salakhutdinov and Hinton, "Semantic Hashing", 2009). Not in the paper, where
            it is 0; 1 is a good value for algorithmic tasks (results/sequences).
        jump_bias: what is added to the biases of JUMP when the machine is made. A machine that begins with few jumps, at -4, say,
            learns to step from cell to cell, and keeps what it learned at longer lengths. Not in the paper, where it is 0.
        conv_size: the width, in tokens, of a causal convolution of the inputs (``ShortConvolution``), before values, keys and
            controller, so that a step can write what two tokens say. Default: none.
        backend: ``"loop"`` computes the equations step by step; ``"scan"`` computes all head positions first (in closed form
            without JUMP and your own transitions) and then each value tape as one ``memory_scan``; ``"auto"`` uses the compiled
            kernel on a CPU and without your own transitions, else the scan. Only ``"loop"`` has second derivatives.
        batch_first: whether inputs and outputs are ``(B, T, input_size)``, the default, or ``(T, B, input_size)``. States, masks
            and traces begin with ``B`` in both cases.
        device: where the parameters are.
        dtype: dtype of the parameters.

    Raises:
        ValueError: a size below 1, an unknown name, or sizes that do not fit each other.
        TypeError: sizes, controller or actions of another type.

    Example:
        >>> machine = NAMTuringMachine(input_size=8, num_tapes=2, tape_length=40)
        >>> x = torch.randn(3, 10, 8)
        >>> outputs, state = machine(x)
        >>> outputs.shape
        torch.Size([3, 10, 8])
        >>> output, state = machine.step(torch.randn(3, 8), state)  # one more token
        >>> output.shape
        torch.Size([3, 8])
    """

    def __init__(
        self,
        input_size: int,
        num_tapes: int = 4,
        tape_width: int | None = None,
        hidden_size: int | None = None,
        tape_length: int | None = None,
        *,
        preset: str | None = None,
        controller: str | nn.Module | None = None,
        actions: Sequence[str | Action] | None = None,
        erase: str | None = None,
        key_erase: str | None = None,
        head_norm: str | None = None,
        order: str | None = None,
        move_noise: float = 0.0,
        jump_bias: float = 0.0,
        conv_size: int | None = None,
        backend: str = "auto",
        batch_first: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        flags = resolve_preset(
            preset,
            controller=controller,
            actions=actions,
            erase=erase,
            key_erase=key_erase,
            head_norm=head_norm,
            order=order,
        )
        if backend not in ("auto", "loop", "scan"):
            raise ValueError(f"NAMTuringMachine: backend must be 'auto', 'loop' or 'scan', got {backend!r}")
        if not 0 <= move_noise < math.inf:
            raise ValueError(f"NAMTuringMachine: move_noise must be a finite number of at least 0, got {move_noise!r}")
        if not math.isfinite(jump_bias):
            raise ValueError(f"NAMTuringMachine: jump_bias must be a finite number, got {jump_bias!r}")
        check_conv_size("NAMTuringMachine", conv_size)
        sizes = {"input_size": input_size, "num_tapes": num_tapes, "tape_width": tape_width}
        for name, size in {**sizes, "hidden_size": hidden_size, "tape_length": tape_length}.items():
            if size is not None:
                check_size("NAMTuringMachine", name, size)
        if tape_width is None and input_size % num_tapes:
            raise ValueError(
                f"NAMTuringMachine: input_size {input_size} does not divide among {num_tapes} tapes: pass tape_width"
            )
        self.input_size = input_size
        self.num_tapes = num_tapes
        self.tape_width = input_size // num_tapes if tape_width is None else tape_width
        self.hidden_size = input_size if hidden_size is None else hidden_size
        self.tape_length = tape_length
        self.erase = flags.erase
        self.key_erase = flags.key_erase
        self.head_norm = flags.head_norm
        self.order = flags.order
        self.move_noise = float(move_noise)
        self.jump_bias = float(jump_bias)
        self.backend = backend
        self.batch_first = batch_first

        self.actions = resolve_actions(flags.actions)
        self.has_keys = any(getattr(action, "needs_keys", False) for action in self.actions)
        # Registered, so that the parameters of an action are trained, saved and moved with those of the machine.
        self.action_modules = nn.ModuleList(a for a in self.actions if isinstance(a, nn.Module))

        if isinstance(flags.controller, nn.Module):
            self.controller = flags.controller
        elif not isinstance(flags.controller, str):
            kind = type(flags.controller).__name__
            raise TypeError(f"NAMTuringMachine: controller must be a name or an nn.Module, got {kind}")
        else:
            self.controller = build_controller(flags.controller, input_size, self.hidden_size, device, dtype)

        def linear(wide: int, out: int) -> nn.Linear:
            return nn.Linear(wide, out, device=device, dtype=dtype)

        across = num_tapes * self.tape_width
        self.conv = None
        if conv_size is not None:
            self.conv = ShortConvolution(input_size, conv_size, device=device, dtype=dtype)
        self.num_gates = 3 if self.erase == "separate" else 2
        self.value_proj = linear(input_size, across)
        self.key_proj = linear(input_size, across) if self.has_keys else None
        self.query_proj = linear(self.hidden_size, across) if self.has_keys else None
        self.action_proj = linear(self.hidden_size, num_tapes * (2 * len(self.actions) + self.num_gates))
        self.out_proj = linear(across, input_size)
        jumps = [place for place, action in enumerate(self.actions) if isinstance(action, Jump)]
        if jump_bias and not jumps:
            raise ValueError("NAMTuringMachine: jump_bias belongs to a machine with the action JUMP")
        with torch.no_grad():
            moves = self.action_proj.bias.view(num_tapes, -1)[:, : 2 * len(self.actions)]
            torch.unflatten(moves, -1, (2, -1))[..., jumps] += jump_bias

    def initial_state(self, batch_size: int, tape_length: int | None = None) -> TuringState:
        """Return the state before the first step: empty tapes, heads on cell 0.

        Args:
            batch_size: ``B``.
            tape_length: ``L``; default: the ``tape_length`` of the machine. One of them must be given.

        Raises:
            ValueError: no length is given, or it is below 1, or ``batch_size`` is below 0.
            TypeError: one of them is not an integer.
        """
        where = "NAMTuringMachine.initial_state"
        length = self.tape_length if tape_length is None else tape_length
        if length is None:
            raise ValueError(f"{where}: needs tape_length, the machine has none: pass the number of cells")
        check_size(where, "tape_length", length)
        check_size(where, "batch_size", batch_size, least=0)
        device, dtype = self.value_proj.weight.device, self._state_dtype()
        tape = torch.zeros(batch_size, self.num_tapes, self.tape_width, length, device=device, dtype=dtype)
        head = torch.zeros(batch_size, self.num_tapes, length, device=device, dtype=dtype)
        head[..., 0] = 1.0
        return TuringState(tape, tape.clone() if self.has_keys else None, head, head.clone())

    @overload
    def forward(
        self,
        x: Tensor,
        state: TuringState | None = None,
        mask: Tensor | None = None,
        *,
        return_trace: Literal[False] = False,
    ) -> tuple[Tensor, TuringState]: ...

    @overload
    def forward(
        self, x: Tensor, state: TuringState | None = None, mask: Tensor | None = None, *, return_trace: Literal[True]
    ) -> tuple[Tensor, TuringState, TuringTrace]: ...

    def forward(
        self, x: Tensor, state: TuringState | None = None, mask: Tensor | None = None, *, return_trace: bool = False
    ) -> tuple[Tensor, TuringState] | tuple[Tensor, TuringState, TuringTrace]:
        """Return the outputs and the state after the last step.

        Args:
            x: ``(B, T, input_size)``, or ``(T, B, input_size)`` without ``batch_first``; at least one step.
            state: the result of an earlier call, or ``initial_state``; default: the initial state. Tapes keep their length: for a
                machine without ``tape_length`` two halves differ from the whole, since the first half chooses shorter tapes. Half
                precision is converted to float32. With a bidirectional controller the state has only tapes and heads.
            mask: ``(B, T)`` bool, True where there is a token; elsewhere nothing is written, heads stay and the output is 0. If
                neither ``tape_length`` nor ``state`` is given, padding also makes tapes longer.
            return_trace: whether to return a trace of heads, gates and tapes too. This always uses the loop.

        Returns:
            outputs in the layout of ``x`` and the dtype of its projections, the state, and the trace if ``return_trace``.

        Raises:
            ValueError: a shape or device does not fit the machine, or ``T`` is dynamic in ``torch.export``.
            TypeError: a dtype does not fit.
        """
        where = "NAMTuringMachine"
        check_tensor(where, "x", x, (*("BT" if self.batch_first else "TB"), self.input_size))
        x = x if self.batch_first else x.transpose(0, 1)
        batch, steps, _ = x.shape
        if isinstance(steps, torch.SymInt) and needs_plain_autograd():
            raise ValueError(
                f"{where}: an export fixes the number of steps T: make that dimension of x static, or export the method step"
            )
        if steps < 1:
            raise ValueError(f"{where}: x must have at least one step, got shape {tuple(x.shape)}")
        if mask is not None:
            check_mask(where, "mask", mask, (batch, steps))
            check_alike(where, dtype=False, x=x, mask=mask)
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)  # padding may hold NaN
        if state is None:
            length = self.tape_length if self.tape_length is not None else max(_SHORTEST_TAPE, steps)
            state = self.initial_state(batch, length)
        state = self._admit(where, x, state)
        recent = None
        if self.conv is not None:
            x, recent = self.conv(x, state.recent, mask)
        hidden, controller_state = run_controller(self.controller, x, state.controller, mask)
        check_tensor(where, "the controller's hidden features", hidden, (batch, steps, self.hidden_size))
        controls, kind = self._controls(x, hidden, state.read_head.dtype, mask)
        # Tapes and heads would lose precision in bfloat16: only the projections run under autocast.
        with full_precision(x.device):
            if return_trace or self.backend == "loop":
                reads, states = self._loop(x, controls, state, mask)
                state = states[-1]
            elif self.backend == "auto" and kernel_takes(self.actions, state.read_head):
                flags = KernelFlags(self.actions, self.key_erase, self.head_norm, self.order)
                reads, state = run_by_kernel(controls, state, mask, flags)
            else:
                reads, state = self._scan(x, controls, state, mask)
        outputs = self.out_proj(reads.flatten(-2).to(kind))
        if mask is not None:
            outputs = outputs.masked_fill(~mask.unsqueeze(-1), 0.0)
        outputs = outputs if self.batch_first else outputs.transpose(0, 1)
        state = state._replace(controller=controller_state, recent=recent)
        return (outputs, state, trace_of(states, controls)) if return_trace else (outputs, state)

    def step(self, x: Tensor, state: TuringState) -> tuple[Tensor, TuringState]:
        """Return the output of one step and the state after it: ``forward`` on one token.

        Args:
            x: ``(B, input_size)``.
            state: the result of the step before, ``initial_state(B, L)`` for the first.

        Returns:
            output ``(B, input_size)`` and the new state.

        Raises:
            ValueError: the controller is bidirectional, or a shape or device does not fit.
            TypeError: a dtype does not fit.
        """
        where = "NAMTuringMachine.step"
        if not is_causal(self.controller):
            raise ValueError(
                f"{where}: the controller is bidirectional and needs the whole sequence: call the machine on the sequence, "
                "or choose controller 'lstm' or 'mlp'"
            )
        check_tensor(where, "x", x, ("B", self.input_size))
        state = self._admit(where, x, state)
        recent = None
        if self.conv is not None:
            x, recent = self.conv.step(x, self.conv.init_state(len(x)) if state.recent is None else state.recent)
        hidden, controller_state = run_controller(self.controller, x.unsqueeze(1), state.controller, None)
        controls, kind = self._controls(x, hidden.squeeze(1), state.read_head.dtype, None)
        with full_precision(x.device):
            reads, state = self._advance(x, controls, state, None)
        return self.out_proj(reads.flatten(-2).to(kind)), state._replace(controller=controller_state, recent=recent)

    def extra_repr(self) -> str:
        """Return sizes and flags."""
        actions = ", ".join(action_name(action) for action in self.actions)
        length = "" if self.tape_length is None else f", tape_length={self.tape_length}"
        noise = f", move_noise={self.move_noise:g}" if self.move_noise else ""
        noise += f", jump_bias={self.jump_bias:g}" if self.jump_bias else ""
        noise += f", conv_size={self.conv.width}" if self.conv is not None else ""
        return (
            f"{self.input_size}, num_tapes={self.num_tapes}, tape_width={self.tape_width}{length}, actions=({actions}), "
            f"erase={self.erase!r}, key_erase={self.key_erase!r}, head_norm={self.head_norm!r}, order={self.order!r}"
            f"{noise}, backend={self.backend!r}" + ("" if self.batch_first else ", batch_first=False")
        )

    def _controls(
        self, x: Tensor, hidden: Tensor, dtype: torch.dtype, mask: Tensor | None
    ) -> tuple[Controls, torch.dtype]:
        """Return the controls of the tapes for ``x`` and ``hidden``, in ``dtype``, and the dtype of the projections."""
        by_tape = (self.num_tapes, -1)
        values = self.value_proj(x)
        logits = self.action_proj(hidden).unflatten(-1, by_tape).to(dtype)
        count = len(self.actions)
        read_actions, write_actions, gates = logits.split([count, count, self.num_gates], dim=-1)
        if self.training and self.move_noise:
            read_actions, write_actions = (
                actions + self.move_noise * torch.randn_like(actions) for actions in (read_actions, write_actions)
            )
        gates = gates.sigmoid()
        if mask is not None:
            gates = gates * mask[:, :, None, None]
        keys = queries = None
        if self.key_proj is not None and self.query_proj is not None:
            keys = unit(self.key_proj(x).unflatten(-1, by_tape).to(dtype))
            queries = unit(self.query_proj(hidden).unflatten(-1, by_tape).to(dtype))
        controls = Controls(
            values.unflatten(-1, by_tape).to(dtype),
            read_actions.softmax(-1),
            write_actions.softmax(-1),
            p_read=gates[..., 0],
            p_write=gates[..., 1],
            p_erase=gates[..., -1],  # with two gates this is p_write
            keys=keys,
            queries=queries,
        )
        return controls, values.dtype

    def _advance(
        self, token: Tensor, controls: Controls, state: TuringState, mask: Tensor | None
    ) -> tuple[Tensor, TuringState]:
        """Return the reads ``(B, tapes, c)`` of one step and the new state without the controller's, by the equations above."""
        c, reader, writer = controls, state.read_head, state.write_head
        if self.head_norm == "access":
            reader, writer = unit(reader), unit(writer)
        value_tape = write(state.value_tape, writer, c.values, c.p_write, c.p_erase)
        reads = read(value_tape if self.order == "write_first" else state.value_tape, reader, c.p_read)
        key_tape = state.key_tape
        if key_tape is not None and c.keys is not None:
            key_tape = write_key(key_tape, c.keys, state.write_head, c.p_write, c.p_erase, self.key_erase)
        context = HeadContext(token, key_tape, c.queries)
        normalise = self.head_norm == "state"
        read_head, write_head = (
            move(head, probabilities, self.actions, context, normalise=normalise, mask=mask)
            for head, probabilities in ((state.read_head, c.read_actions), (state.write_head, c.write_actions))
        )
        return reads, TuringState(value_tape, key_tape, read_head, write_head)

    def _loop(
        self, x: Tensor, controls: Controls, state: TuringState, mask: Tensor | None
    ) -> tuple[Tensor, list[TuringState]]:
        """Return the reads and all states, starting with the given one."""
        reads, states = [], [state]
        masks = [None] * x.shape[1] if mask is None else mask.unbind(1)
        for token, now, present in zip(x.unbind(1), controls.by_step(), masks, strict=True):
            read_now, state = self._advance(token, now, state, present)
            reads.append(read_now)
            states.append(state)
        return torch.stack(reads, dim=1), states

    def _scan(
        self, x: Tensor, controls: Controls, state: TuringState, mask: Tensor | None
    ) -> tuple[Tensor, TuringState]:
        """Compute the head positions of the whole sequence, then each value tape as one scan with cells as keys."""
        c = controls
        key_controls = None
        if c.keys is not None and c.queries is not None:
            key_controls = KeyControls(c.keys, c.queries, c.p_write, c.p_erase)
        heads, last_heads, key_tape = head_positions(
            torch.stack([state.read_head, state.write_head], dim=2),
            state.key_tape,
            torch.stack([c.read_actions, c.write_actions], dim=3),
            self.actions,
            x,
            key_controls,
            key_erase=self.key_erase,
            normalise=self.head_norm == "state",
            mask=mask,
        )
        readers, writers = (unit(heads) if self.head_norm == "access" else heads).unbind(3)
        if self.order == "write_first":
            reads, value_tape = memory_scan(
                readers, writers, c.values, c.p_read, c.p_write, c.p_erase, initial_memory=state.value_tape
            )
        else:
            # The scan reads after its write. So let each step read for the next one, and read for the first step here.
            first = read(state.value_tape, readers[:, 0], c.p_read[:, 0])
            reads, value_tape = memory_scan(
                readers.roll(-1, 1),
                writers,
                c.values,
                c.p_read.roll(-1, 1),
                c.p_write,
                c.p_erase,
                initial_memory=state.value_tape,
            )
            reads = torch.cat([first.unsqueeze(1), reads[:, :-1]], dim=1)
        read_head, write_head = last_heads.unbind(2)
        return reads, TuringState(value_tape, key_tape, read_head, write_head)

    def _admit(self, where: str, x: Tensor, state: object) -> TuringState:
        """Check ``x`` and ``state`` against the machine, and return ``state`` in at least the machine's precision."""
        kind = x.device.type
        mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        check_alike(where, x=x, weights=self.value_proj.weight, dtype=not mixed)
        sizes = (x.shape[0], self.num_tapes, self.tape_width)
        state = admit_state(where, state, sizes, self.has_keys, self._state_dtype())
        check_alike(where, dtype=False, x=x, state=state.read_head, recent=state.recent)
        if state.recent is not None:
            if self.conv is None:
                raise ValueError(f"{where}: state.recent belongs to a machine with conv_size")
            check_tensor(where, "state.recent", state.recent, (x.shape[0], self.conv.width - 1, self.conv.channels))
        return state

    def _state_dtype(self) -> torch.dtype:
        return torch.promote_types(self.value_proj.weight.dtype, torch.float32)
