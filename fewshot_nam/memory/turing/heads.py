"""The heads of a NAM Turing Machine: the actions that move them, and their positions over a whole sequence.

Source: Nam and Seo, "Neural Attention Memory" (arXiv 2302.09422), the NAM Turing Machine. A head is a vector ``h`` in ``R^L`` over
the ``L`` cells of a circular tape, at first with all its weight on cell 0. Each step blends the results of the actions,
``h' = sum_a p_a action_a(h)``: LEFT, NO-OP and RIGHT roll the head by -1, 0 and 1, and JUMP reads the query from the key tape.

``head_positions`` computes this equation for all steps in one of two ways. A roll is diagonal in Fourier space, so with rolls only
``h_t = irfft(rfft(h_0) prod_(s<t) lambda_s)`` with ``lambda(f) = sum_a p_a exp(-2 pi i f o_a / L)`` for offsets ``o_a``, without a
loop over time. Otherwise it loops over time, for heads and key tape only; the value tape is computed afterwards.

Legend: ``B`` sequences, ``T`` steps, ``L`` cells, ``c`` tape width, ``A`` actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fewshot_nam.memory.primitives import unit
from fewshot_nam.memory.turing.key_tape import BlockedKeyTape, KeyControls, steps_of
from fewshot_nam.memory.validation import check_tensor


class HeadContext(NamedTuple):
    """What an action may use besides the heads: the input of the step, and the key tape if the machine has one."""

    token: Tensor
    """``(B, input_size)``, the input of this step."""
    key_tape: Tensor | None
    """``(B, tapes, c, L)`` after this step's write, a column for each cell. None without an action that ``needs_keys``."""
    query: Tensor | None
    """``(B, tapes, c)`` of unit length; None if ``key_tape`` is None."""


Action = Callable[[Tensor, HeadContext], Tensor]
"""A differentiable transition ``(heads (B, tapes, L), context) -> new heads (B, tapes, L)``, called once for the read heads and
once for the write heads. An attribute ``needs_keys = True`` gives the machine a key tape."""


@dataclass(frozen=True)
class Shift:
    """Roll the heads by ``offset`` cells around the circular tape: LEFT is -1, NO-OP 0, RIGHT 1."""

    offset: int

    def __call__(self, heads: Tensor, context: HeadContext) -> Tensor:
        """Return the rolled ``heads``."""
        return heads.roll(self.offset, dims=-1)


@dataclass(frozen=True)
class Jump:
    """Move to the cells where the key tape ``K`` (cells by keys) stores the query: ``K q``, signed and not normalised."""

    needs_keys = True

    def __call__(self, heads: Tensor, context: HeadContext) -> Tensor:
        """Return ``K q``, the same for any ``heads``."""
        assert context.key_tape is not None
        assert context.query is not None
        return (context.query.unsqueeze(-2) @ context.key_tape).squeeze(-2)


NAMED_ACTIONS: dict[str, Action] = {"left": Shift(-1), "noop": Shift(0), "right": Shift(1), "jump": Jump()}


def resolve_actions(actions: Sequence[str | Action]) -> tuple[Action, ...]:
    """Return the actions as callables, in order.

    Args:
        actions: names from ``NAMED_ACTIONS`` and your own transitions, at least one.

    Raises:
        ValueError: no action, or an unknown name.
        TypeError: an entry is neither a name nor callable, or is a class, or ``actions`` is a string.
    """
    if isinstance(actions, str) or not isinstance(actions, Sequence):
        raise TypeError(f"NAMTuringMachine: actions must be a sequence of names or transitions, got {actions!r}")
    if not actions:
        raise ValueError("NAMTuringMachine: actions must name at least one action, got none")
    resolved = []
    for action in actions:
        if isinstance(action, str):
            if action not in NAMED_ACTIONS:
                known = ", ".join(NAMED_ACTIONS)
                raise ValueError(f"NAMTuringMachine: unknown action {action!r}: the named ones are {known}")
            resolved.append(NAMED_ACTIONS[action])
        elif isinstance(action, type):
            name = action.__name__
            raise TypeError(
                f"NAMTuringMachine: an action must be a name or a callable, got class {name}: pass {name}(...)"
            )
        elif callable(action):
            resolved.append(action)
        else:
            raise TypeError(f"NAMTuringMachine: an action must be a name or a callable, got {type(action).__name__}")
    return tuple(resolved)


def action_name(action: Action) -> str:
    """Return the name of an action in ``extra_repr`` and in plots."""
    for name, named in NAMED_ACTIONS.items():
        if action == named:
            return name
    if isinstance(action, Shift):
        return f"shift({action.offset:+d})"
    return getattr(action, "__name__", type(action).__name__)


def act(action: Action, heads: Tensor, context: HeadContext) -> Tensor:
    """Return the result of ``action`` for ``heads (B, tapes, L)``, in that shape.

    Raises:
        TypeError: the result is no floating tensor.
        ValueError: the result has another shape, which would be broadcast along the tape.
    """
    target = action(heads, context)
    if type(action) not in (Shift, Jump):
        check_tensor("NAMTuringMachine", f"the result of action {action_name(action)}", target, heads.shape)
    return target


def move(
    heads: Tensor,
    probabilities: Tensor,
    actions: Sequence[Action],
    context: HeadContext,
    *,
    normalise: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the heads after one step, ``sum_a p_a action_a(h)``.

    Args:
        heads: ``(B, tapes, L)``.
        probabilities: ``(B, tapes, A)``, one for each action.
        actions: the ``A`` actions.
        context: the other inputs of the actions.
        normalise: whether the new heads are normalised to length 1.
        mask: ``(B,)`` bool; where False the heads stay.

    Returns:
        ``(B, tapes, L)``.
    """
    moved = torch.zeros_like(heads)
    for action, probability in zip(actions, probabilities.unbind(-1), strict=True):
        moved = moved + probability.unsqueeze(-1) * act(action, heads, context)
    if normalise:
        moved = unit(moved)
    return moved if mask is None else torch.where(mask[:, None, None], moved, heads)


def head_positions(
    heads: Tensor,
    key_tape: Tensor | None,
    probabilities: Tensor,
    actions: Sequence[Action],
    tokens: Tensor,
    key_controls: KeyControls | None,
    *,
    key_erase: str,
    normalise: bool,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the positions of both heads at every step, and heads and key tape after the last: ``move`` in a loop, but fast.

    Args:
        heads: ``(B, tapes, 2, L)``, read heads and write heads before the first step.
        key_tape: ``(B, tapes, c, L)``, or None without keys.
        probabilities: ``(B, T, tapes, 2, A)``, for the read and the write heads.
        actions: the ``A`` actions.
        tokens: ``(B, T, input_size)``, for actions that use them.
        key_controls: None without keys.
        key_erase: ``"position"`` or ``"key"``.
        normalise: whether heads are normalised to length 1 after each move.
        mask: ``(B, T)`` bool; where False the heads stay. The gates of the key tape must be 0 there.

    Returns:
        heads ``(B, T, tapes, 2, L)`` with which each step reads and writes; heads ``(B, tapes, 2, L)`` and key tape after the last.
    """
    if all(type(action) is Shift for action in actions):
        offsets = [action.offset for action in actions if isinstance(action, Shift)]
        positions, last = _positions_by_fft(heads, probabilities, offsets, normalise, mask)
        return positions, last, key_tape
    keys = None
    if key_tape is not None and key_controls is not None:
        keys = BlockedKeyTape(key_tape, key_controls, key_erase)
    positions, last = _positions_by_loop(heads, probabilities, actions, tokens, keys, normalise=normalise, mask=mask)
    return positions, last, None if keys is None else keys.tape()


def _positions_by_fft(
    heads: Tensor, probabilities: Tensor, offsets: list[int], normalise: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``head_positions`` for rolls by ``offsets`` only, with the same shapes."""
    length = heads.shape[-1]
    frequencies = torch.arange(length // 2 + 1, dtype=torch.float64, device=heads.device)
    steps = torch.tensor(offsets, dtype=torch.float64, device=heads.device)
    angles = steps.unsqueeze(-1) * frequencies * (2 * math.pi / length)
    factors = torch.complex(
        probabilities @ angles.cos().to(heads.dtype), probabilities @ -angles.sin().to(heads.dtype)
    )  # (B, T, tapes, 2, L // 2 + 1)
    if mask is not None:
        factors = torch.where(
            mask[:, :, None, None, None], factors, torch.ones((), dtype=factors.dtype, device=mask.device)
        )
    spectrum = torch.fft.rfft(heads).unsqueeze(1)
    moved = torch.fft.irfft(spectrum * _running_product(factors), n=length)
    if normalise:
        # Scaling commutes with rolls, so it is enough to normalise at the end. Heads that have not moved yet stay as given.
        moved_at_all = None if mask is None else mask.cumsum(1)[:, :, None, None, None] > 0
        moved = unit(moved) if moved_at_all is None else torch.where(moved_at_all, unit(moved), moved)
    return torch.cat([heads.unsqueeze(1), moved[:, :-1]], dim=1), moved[:, -1]


def _running_product(x: Tensor) -> Tensor:
    """Return the cumulative product of ``x (B, T, ...)`` over steps: ``2 T`` multiplications, ``log T`` deep.

    The gradient of ``cumprod`` has quadratic cost where a factor is 0, and sums of logarithms have no gradient there.
    """
    steps = x.shape[1]
    if steps == 1:
        return x
    even = steps - steps % 2
    first, second = x[:, :even].view(x.shape[0], even // 2, 2, *x.shape[2:]).unbind(2)
    pairs = _running_product(first * second)
    before = torch.cat([torch.ones_like(pairs[:, :1]), pairs[:, :-1]], dim=1)
    product = torch.stack([before * first, pairs], dim=2).flatten(1, 2)
    return product if even == steps else torch.cat([product, pairs[:, -1:] * x[:, even:]], dim=1)


def _positions_by_loop(
    heads: Tensor,
    probabilities: Tensor,
    actions: Sequence[Action],
    tokens: Tensor,
    keys: BlockedKeyTape | None,
    *,
    normalise: bool,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``head_positions`` for any actions, step by step; ``keys`` is the key tape, which it writes.

    Shapes are those of ``head_positions``: heads ``(B, tapes, 2, L)``, probabilities ``(B, T, tapes, 2, A)``, tokens
    ``(B, T, input_size)``, mask ``(B, T)``. Inside, batch and tapes are one dimension: ``head`` and the results of actions are
    ``(B tapes, 2, L)``, the probability of one action and ``stays`` are ``(B tapes, 2, 1)``.
    """
    batch, tapes, _, length = heads.shape
    head = heads.flatten(0, 1)
    by_action = zip(*(steps_of(p.unsqueeze(-1)) for p in probabilities.unbind(-1)), strict=True)
    stays = None if mask is None else steps_of(~mask[:, :, None, None, None].expand(-1, -1, tapes, -1, -1))
    positions = []
    for t, (step_probabilities, token) in enumerate(zip(by_action, tokens.unbind(1), strict=True)):
        positions.append(head)
        jumped = None if keys is None else keys.step(head[:, 1:])
        moved = None
        for action, probability in zip(actions, step_probabilities, strict=True):
            if type(action) is Shift:
                target = head.roll(action.offset, dims=-1) if action.offset else head
            elif type(action) is Jump and jumped is not None:
                target = jumped
            else:
                tape, query = (None, None) if keys is None else (keys.tape(), keys.query())
                context = HeadContext(token, tape, query)
                both = [act(action, one, context) for one in head.view(batch, tapes, 2, length).unbind(2)]
                target = torch.stack(both, dim=2).flatten(0, 1)
            moved = probability * target if moved is None else torch.addcmul(moved, probability, target)
        assert moved is not None
        if normalise:
            moved = unit(moved)
        head = moved if stays is None else torch.where(stays[t], head, moved)
    everywhere = torch.stack(positions).view(len(positions), batch, tapes, 2, length).transpose(0, 1)
    return everywhere, head.view(batch, tapes, 2, length)
