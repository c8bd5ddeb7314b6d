"""The joint write: all keys are written into one memory at once, in closed form, and every class reads 1 for its own direction.

The metric ``R = (ridge I + sum_i z_i z_i^T)^(-1)`` over all keys ``z_i`` is the state of recursive least squares: one more key
changes it by ``R <- R - R z z^T R / (1 + z^T R z)``. The weights of a class with mean direction ``u`` are ``R u / (u^T R u)``.

Theorem 1 of the paper says ``W x = y``: the written key reads 1 for its class and 0 for the others. A ridge alone loses both,
the more the more keys there are. The division gives the first half back, ``w . u = 1``, for any ridge and any number of
classes; the second half holds only as the ridge goes to 0. A plain prototype has the first half too: it is the limit of a large
ridge.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def joint_write(means: Tensor, keys: Tensor, base: Tensor, ridge: float) -> Tensor:
    """Return class weights ``(E, B + N, D)``; ``weights[e, c]`` reads 1 for the direction of class ``c``.

    Args:
        means: ``(E, N, D)``, of length 1, the mean direction of each novel class.
        keys: ``(E, n, D)``, of length 1, what is written for them.
        base: ``(B, D)``, of length 1, keys of base classes and their directions, the same in every episode; ``B`` may be 0.
        ridge: damping, above 0.
    """
    rows = _solved(means, keys, base, ridge)
    means = torch.cat([base.expand(len(means), -1, -1), means], dim=1) if len(base) else means
    return rows / _at_least_tiny((rows * means).sum(dim=-1, keepdim=True))


def _solved(means: Tensor, keys: Tensor, base: Tensor, ridge: float) -> Tensor:
    """Return ``R u`` of all classes up to a factor, base classes first, by the smallest system there is."""
    (count, width), known = keys.shape[-2:], len(base)
    if count > width:
        every = torch.cat([base.expand(len(keys), -1, -1), keys], dim=1)
        wanted = torch.cat([base.expand(len(keys), -1, -1), means], dim=1)
        return torch.cholesky_solve(wanted.mT, torch.linalg.cholesky(_damped(every.mT @ every, ridge))).mT
    # Woodbury's identity: a few keys change the metric by little. Base classes are written once for all episodes.
    if not known:
        shared = torch.cholesky_solve(keys @ means.mT, torch.linalg.cholesky(_damped(keys @ keys.mT, ridge)))
        return torch.baddbmm(means, shared.mT, keys, alpha=-1)
    if known <= width:
        of_base = torch.cholesky_solve(base, torch.linalg.cholesky(_damped(base @ base.mT, ridge)))
        of_keys, of_means = ((rows - (rows @ base.mT) @ of_base) / ridge for rows in (keys, means))
    else:
        metric = torch.cholesky_inverse(torch.linalg.cholesky(_damped(base.mT @ base, ridge)))
        of_base, of_keys, of_means = base @ metric, keys @ metric, means @ metric
    solved = torch.linalg.solve(_damped(of_keys @ keys.mT, 1.0), of_keys)
    novel = of_means - (of_means @ keys.mT) @ solved
    return torch.cat([of_base - (of_base @ keys.mT) @ solved, novel], dim=1)


def _damped(products: Tensor, ridge: float) -> Tensor:
    return products + ridge * torch.eye(products.shape[-1], dtype=products.dtype, device=products.device)


def _at_least_tiny(own: Tensor) -> Tensor:
    """Return what classes read for themselves; a class whose shots cancel out has no direction, and then reads 0 for everything."""
    return own.clamp_min(torch.finfo(own.dtype).tiny)


class GrowingMemory(NamedTuple):
    """A joint write that takes further classes at a cost of ``C D + D^2`` each; weights are never formed.

    Attributes:
        metric: ``(D, D)``, ``R``.
        own: ``(C,)``, ``u_c^T R u_c``.
        ridge: damping.
        written: how many keys were written.
    """

    metric: Tensor
    own: Tensor
    ridge: float
    written: int

    @classmethod
    def of(cls, means: Tensor, keys: Tensor, ridge: float) -> GrowingMemory:
        """Return the memory of keys ``(n, D)`` of classes with mean directions ``(C, D)``."""
        return cls.of_spread(means, keys.mT @ keys, ridge, len(keys))

    @classmethod
    def of_spread(cls, means: Tensor, spread: Tensor, ridge: float, written: int) -> GrowingMemory:
        """Return the memory of ``written`` keys with the sum of products ``spread`` ``(D, D)``, for directions ``(C, D)``."""
        metric = torch.cholesky_inverse(torch.linalg.cholesky(_damped(spread, ridge)))
        return cls(metric, ((means @ metric) * means).sum(dim=-1), ridge, written)

    def with_classes(self, before: Tensor, means: Tensor, keys: Tensor) -> GrowingMemory:
        """Return the memory with more classes.

        Args:
            before: ``(C, D)``, mean directions of the classes in it.
            means: ``(r, D)``, of the new ones.
            keys: ``(k, D)``, their keys.
        """
        of_keys = keys @ self.metric
        system = _damped(of_keys @ keys.mT, 1.0)
        metric = self.metric - of_keys.mT @ torch.linalg.solve(system, of_keys)
        shared = before @ of_keys.mT
        lost = (torch.linalg.solve(system, shared.mT).mT * shared).sum(dim=-1)
        own = torch.cat([self.own - lost, ((means @ metric) * means).sum(dim=-1)])
        return GrowingMemory(metric, own, self.ridge, self.written + len(keys))

    def read(self, queries: Tensor, means: Tensor) -> Tensor:
        """Return ``w_c . z`` ``(..., C)`` of queries ``(..., D)``, for classes with mean directions ``(C, D)``."""
        return (queries @ self.metric) @ means.mT / _at_least_tiny(self.own)

    def weights(self, means: Tensor) -> Tensor:
        """Return class weights ``(C, D)``."""
        return (means @ self.metric) / _at_least_tiny(self.own).unsqueeze(-1)
