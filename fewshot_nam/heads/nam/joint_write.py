"""The joint write: all pairs of key and value are written at once, in closed form, and none spoils another.

All functions give the memory of ``write_block`` (``fewshot_nam.memory``). ``write_onto`` adds novel pairs to base classes that were
written before, as recursive least squares does. ``write_sums`` is for few keys and ``write_classes`` for many.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_nam.memory.primitives import write_block


def write_onto(base: Tensor, keys: Tensor, values: Tensor, p_write: float, p_erase: float, ridge: float) -> Tensor:
    """Return the memory ``(E, C, D)`` with base classes and ``n`` more pairs written; base classes are written first.

    With ``p_write`` and ``p_erase`` of 1 it is the memory that ``write_block`` gives for all pairs at once.

    Args:
        base: ``(B, D)``, one unit key for each base class, written with the value 1 for that class.
        keys: ``(E, n, D)``.
        values: ``(E, n, C)``, base columns first.
        p_write: write probability of the n pairs.
        p_erase: their erase probability.
        ridge: damping, above 0.
    """
    identity = torch.eye(len(base), dtype=base.dtype, device=base.device)
    weights = write_block(torch.zeros_like(base), base, identity, 1.0, 0.0, ridge)
    memory = torch.cat([weights, weights.new_zeros(values.shape[-1] - len(base), weights.shape[-1])])
    # What remains of a key after the part that the base keys explain.
    residual = keys - (keys @ base.mT) @ weights
    damped = keys @ residual.mT + ridge * torch.eye(keys.shape[-2], dtype=keys.dtype, device=keys.device)
    updates = p_write * values - p_erase * (keys @ memory.mT)
    return memory + updates.mT @ torch.linalg.solve(damped, residual)


def write_sums(products: Tensor, values: Tensor, p_write: float, ridge: float) -> Tensor:
    """Return the weights ``(E, C, n)`` of the sums of keys that ``write_block`` writes into an empty memory.

    Args:
        products: ``(E, n, n)``, of the keys with one another.
        values: ``(n, C)``.
        p_write: write probability.
        ridge: damping, above 0.
    """
    damped = products + ridge * torch.eye(products.shape[-1], dtype=products.dtype, device=products.device)
    solved = torch.cholesky_solve(values.expand(*products.shape[:-2], -1, -1), torch.linalg.cholesky(damped))
    return p_write * solved.mT


def write_classes(keys: Tensor, sums: Tensor, p_write: float, ridge: float) -> Tensor:
    """Return the memory ``(E, C, D)`` that ``write_block`` writes into an empty one with one-hot values.

    It solves a ``D x D`` system in place of an ``n x n`` one, which is faster for more keys than dimensions.

    Args:
        keys: ``(E, n, D)``.
        sums: ``(E, C, D)``, the sum of the keys of each class.
        p_write: write probability.
        ridge: damping, above 0.
    """
    spread = keys.mT @ keys + ridge * torch.eye(keys.shape[-1], dtype=keys.dtype, device=keys.device)
    return p_write * torch.cholesky_solve(sums.mT, torch.linalg.cholesky(spread)).mT
