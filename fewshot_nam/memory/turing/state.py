"""The state of a NAM Turing Machine, the controls of its tapes, and the trace of a run.

Legend: ``B`` sequences, ``T`` steps, ``L`` cells of a tape, ``c`` width of a cell, ``A`` actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewshot_nam.memory.validation import check_alike, check_tensor


class TuringState(NamedTuple):
    """The state of a machine between two steps. Tapes and heads are in float32 at least."""

    value_tape: Tensor
    """``(B, tapes, c, L)``, a column for each cell."""
    key_tape: Tensor | None
    """``(B, tapes, c, L)``, or None for a machine without keys."""
    read_head: Tensor
    """``(B, tapes, L)``."""
    write_head: Tensor
    """``(B, tapes, L)``."""
    controller: Any = None
    """The state of the controller; None at the start, and for a controller that has none or is bidirectional."""
    recent: Tensor | None = None
    """``(B, conv_size - 1, input_size)``, the last tokens, for a machine with ``conv_size``; None at the start means zeros."""


class TuringTrace(NamedTuple):
    """Heads, actions, gates and tapes at each step. Heads are those with which the step read and wrote, before moving."""

    read_heads: Tensor
    """``(B, T, tapes, L)``."""
    write_heads: Tensor
    """``(B, T, tapes, L)``."""
    read_actions: Tensor
    """``(B, T, tapes, A)`` probabilities."""
    write_actions: Tensor
    """``(B, T, tapes, A)`` probabilities."""
    p_read: Tensor
    """``(B, T, tapes)``."""
    p_write: Tensor
    """``(B, T, tapes)``."""
    p_erase: Tensor
    """``(B, T, tapes)``."""
    value_tapes: Tensor
    """``(B, T, tapes, c, L)`` after the step."""
    key_tapes: Tensor | None
    """``(B, T, tapes, c, L)`` after the step, or None."""


class Controls(NamedTuple):
    """Inputs of the tapes and heads, each ``(B, T, tapes, ...)``, or without T for one step."""

    values: Tensor  # (..., c)
    read_actions: Tensor  # (..., A)
    write_actions: Tensor  # (..., A)
    p_read: Tensor
    p_write: Tensor
    p_erase: Tensor
    keys: Tensor | None  # (..., c)
    queries: Tensor | None  # (..., c)

    def by_step(self) -> list[Controls]:
        """Return the controls of each step. ``unbind``, since the gradient of each ``x[:, t]`` would be a whole ``x`` of zeros."""
        steps = self.values.shape[1]
        parts = [[None] * steps if field is None else field.unbind(1) for field in self]
        return [Controls(*part) for part in zip(*parts, strict=True)]


def check_size(where: str, name: str, size: object, least: int = 1) -> None:
    """Raise unless ``size`` is an integer of at least ``least``.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is below ``least``.
    """
    if not isinstance(size, (int, torch.SymInt)):
        raise TypeError(f"{where}: {name} must be an integer, got {size!r}")
    if size < least:
        raise ValueError(f"{where}: {name} must be at least {least}, got {size}")


def admit_state(
    where: str, state: object, sizes: tuple[int, int, int], has_keys: bool, dtype: torch.dtype
) -> TuringState:
    """Check ``state``, and return it with tapes and heads in ``dtype`` at least.

    Args:
        where: the name of the called function, for messages.
        state: the argument.
        sizes: the required ``(B, tapes, c)``; any ``L`` is allowed.
        has_keys: whether the machine has a key tape.
        dtype: the dtype of the machine's states.

    Raises:
        TypeError: it is not a ``TuringState``, or its dtypes differ or are not floating.
        ValueError: its shapes or its key tape do not fit the machine, or devices differ.
    """
    if not isinstance(state, TuringState):
        raise TypeError(f"{where}: state must be a TuringState, got {type(state).__name__}")
    if (state.key_tape is not None) != has_keys:
        raise ValueError(
            f"{where}: state must {'hold a' if has_keys else 'hold no'} key tape, as the machine has "
            f"{'one' if has_keys else 'none'}"
        )
    batch, tapes, width = sizes
    check_tensor(where, "state.read_head", state.read_head, (batch, tapes, "L"))
    length = state.read_head.shape[-1]
    tape, head = (batch, tapes, width, length), (batch, tapes, length)
    shapes = {"value_tape": tape, "key_tape": tape, "read_head": head, "write_head": head}
    given = {name: value for name in shapes if (value := getattr(state, name)) is not None}
    for name, value in given.items():
        check_tensor(where, f"state.{name}", value, shapes[name])
    check_alike(where, **given)
    dtype = torch.promote_types(state.read_head.dtype, dtype)
    return state._replace(**{name: value.to(dtype) for name, value in given.items()})


def trace_of(states: Sequence[TuringState], controls: Controls) -> TuringTrace:
    """Return the trace of a run.

    Args:
        states: ``T + 1`` states, starting with the one before the first step.
        controls: the controls of all steps, ``(B, T, ...)``.
    """
    before, after = states[:-1], states[1:]
    key_tapes = [state.key_tape for state in after if state.key_tape is not None]
    return TuringTrace(
        read_heads=torch.stack([state.read_head for state in before], dim=1),
        write_heads=torch.stack([state.write_head for state in before], dim=1),
        read_actions=controls.read_actions,
        write_actions=controls.write_actions,
        p_read=controls.p_read,
        p_write=controls.p_write,
        p_erase=controls.p_erase,
        value_tapes=torch.stack([state.value_tape for state in after], dim=1),
        key_tapes=torch.stack(key_tapes, dim=1) if key_tapes else None,
    )
