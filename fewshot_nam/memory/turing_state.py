"""What a NAM Turing Machine carries from step to step, what its inputs ask of it, and what it leaves to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class TuringState(NamedTuple):
    """All that a machine carries from one step to the next. Tapes and heads are in float32 at least."""

    value_tape: Tensor
    """``(B, tapes, c, L)``, a column a cell."""
    key_tape: Tensor | None
    """``(B, tapes, c, L)``, or None for a machine without keys."""
    read_head: Tensor
    """``(B, tapes, L)``."""
    write_head: Tensor
    """``(B, tapes, L)``."""
    controller: Any = None
    """The controller's own state; None at the start, and for a controller that has none or looks both ways."""


class TuringTrace(NamedTuple):
    """What a machine did at each step. ``A`` actions; heads are those that the step read and wrote with, before it moved."""

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
    """What the inputs ask of the tapes, each ``(B, T, tapes, ...)``, or without T for one step."""

    values: Tensor  # (..., c)
    read_actions: Tensor  # (..., A)
    write_actions: Tensor  # (..., A)
    p_read: Tensor
    p_write: Tensor
    p_erase: Tensor
    keys: Tensor | None  # (..., c)
    queries: Tensor | None  # (..., c)

    def by_step(self) -> list[Controls]:
        """Split along time, each tensor once: the gradient of ``x[:, t]`` would be a whole ``x`` of zeros at every step."""
        steps = self.values.shape[1]
        parts = [[None] * steps if field is None else field.unbind(1) for field in self]
        return [Controls(*part) for part in zip(*parts, strict=True)]


def trace_of(states: Sequence[TuringState], controls: Controls) -> TuringTrace:
    """Return the trace of a run.

    Args:
        states: ``T + 1`` states, the one before the first step among them.
        controls: of all steps, ``(B, T, ...)``.
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
