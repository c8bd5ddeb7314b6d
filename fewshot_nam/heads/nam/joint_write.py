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


def write_classes(keys: Tensor, sums: Tensor, p_write: float, ridge: float) -> tuple[Tensor, Tensor]:
    """Return the memory ``(E, C, D)`` that ``write_block`` writes into an empty one with one-hot values.

    It solves a ``D x D`` system in place of an ``n x n`` one, which is faster for more keys than dimensions. Its Cholesky factor
    ``(E, D, D)`` is returned too, for ``write_more``.

    Args:
        keys: ``(E, n, D)``.
        sums: ``(E, C, D)``, the sum of the keys of each class.
        p_write: write probability.
        ridge: damping, above 0.
    """
    spread = keys.mT @ keys + ridge * torch.eye(keys.shape[-1], dtype=keys.dtype, device=keys.device)
    factor = torch.linalg.cholesky(spread)
    return p_write * torch.cholesky_solve(sums.mT, factor).mT, factor


def write_more(
    factor: Tensor, features: Tensor, targets: Tensor, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what ``write_classes`` would change for ``r`` more keys of new classes, in terms of rank ``r``.

    With gates of 1, the memory of the ``C`` classes written before gets ``left @ right`` added, and that of the new classes is
    ``new @ right`` (Woodbury's identity).

    Args:
        factor: ``(1, D, D)``, of ``write_classes`` for what was written before.
        features: ``(1, n, D)``, which were written before; their directions were the keys.
        targets: ``(n,)``, columns 0 to C - 1, the class of each.
        keys: ``(1, r, D)``, the new ones.
        values: ``(r, N)``, one-hot, the new class of each.

    Returns:
        ``left`` ``(1, C, r)``, ``new`` ``(1, N, r)`` and ``right`` ``(1, r, D)``.
    """
    solved = torch.cholesky_solve(keys.mT, factor)
    identity = torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device)
    right = torch.linalg.solve(identity + keys @ solved, solved.mT)
    lengths = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    reads = features @ solved / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)
    left = reads.new_zeros(1, int(targets.max()) + 1, keys.shape[1]).index_add_(1, targets, -reads)
    return left, values.mT.unsqueeze(0), right
