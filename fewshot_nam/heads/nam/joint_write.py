"""Base classes in the label space: written jointly with novel ones, and lent to them.

A novel class is known from a few pictures and a base class from many, so its prototype is noisier, and queries lie farther from it.
Two things make up for that. Novel keys are written onto the memory of the base classes as recursive least squares would, so that
the outcome is the memory in which all pairs were written at once, and each key reads as little as can be for any other class. And
in the plain memory, a novel prototype borrows from the base prototypes that it is like: what the base memory reads for it, with a
softmax over cosines, as in the weight generator of Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting"
(2018), section 3.2, here without training.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_nam.memory.primitives import unit, write_block

CENTRE = 0.7
"""Share of the mean base prototype that is taken off features before they are compared."""

BORROW = 0.3
"""Weight of what a novel prototype borrows, its own being 1."""

SHARPNESS = 30.0
"""What cosines are multiplied by before the softmax over base classes."""

LIFT = 1.3
"""Length of a novel prototype, that of a base prototype being 1."""


def write_onto(base: Tensor, keys: Tensor, values: Tensor, p_write: float, p_erase: float, ridge: float) -> Tensor:
    """Return the memory ``(E, C, D)`` in which base classes stand, and ``n`` more pairs are written.

    With gates of 1 it is the memory that ``write_block`` gives for all pairs at once.

    Args:
        base: ``(B, D)``, one unit key a base class, which is written with 1 in its own row.
        keys: ``(E, n, D)``.
        values: ``(E, n, C)``, base columns first.
        p_write: write probability of the n pairs.
        p_erase: their erase probability.
        ridge: damping, above 0.
    """
    identity = torch.eye(len(base), dtype=base.dtype, device=base.device)
    answers = write_block(torch.zeros_like(base), base, identity, 1.0, 0.0, ridge)
    memory = torch.cat([answers, answers.new_zeros(values.shape[-1] - len(base), answers.shape[-1])])
    # What is left of a key once the base keys have explained what they can of it.
    left = keys - (keys @ base.mT) @ answers
    damped = keys @ left.mT + ridge * torch.eye(keys.shape[-2], dtype=keys.dtype, device=keys.device)
    updates = p_write * values - p_erase * (keys @ memory.mT)
    return memory + updates.mT @ torch.linalg.solve(damped, left)


def write_classes(keys: Tensor, sums: Tensor, p_write: float, ridge: float) -> Tensor:
    """Return the memory ``(E, C, D)`` that ``write_block`` writes into an empty one with one-hot values, without these.

    Args:
        keys: ``(E, n, D)``.
        sums: ``(E, C, D)``, the sum of the keys of each class.
        p_write: write probability.
        ridge: damping, above 0.
    """
    spread = keys.mT @ keys + ridge * torch.eye(keys.shape[-1], dtype=keys.dtype, device=keys.device)
    return p_write * torch.cholesky_solve(sums.mT, torch.linalg.cholesky(spread)).mT


def lend(means: Tensor, base: Tensor) -> Tensor:
    """Return novel prototypes ``(E, N, D)`` with what they borrow from unit base prototypes ``(B, D)``."""
    return means + BORROW * torch.softmax(SHARPNESS * (unit(means) @ base.mT), dim=-1) @ base
