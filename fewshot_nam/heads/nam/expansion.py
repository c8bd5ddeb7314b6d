"""Fixed random features beside the space of base classes, so that classes which no plane divides can be told apart.

    k(x) = unit((unit(relu(z(x) V P)) - c) W^(-1/2)),   P ~ N(0, 1) fixed

``V`` holds the directions of the space in which base prototypes differ, ``c`` and ``W`` are mean and covariance of
``unit(relu(z V P))`` about base classes, a fifth of the identity mixed into ``W``.

Sources: McDonnell et al., "RanPAC: Random Projections and Pre-trained Models for Continual Learning" (2023); Prabhu et al., "Random
Representations Outperform Online Continually Learned Representations" (2024; whitening within classes after random features).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fewshot_nam.heads.base_space import BaseSpace
from fewshot_nam.memory.primitives import unit

_ROWS = 4096
_IDENTITY_SHARE = 0.2  # of W, chosen on validation classes


class Expansion(nn.Module):
    """``k(x)`` as buffers: they move with the head and are saved with it. Empty until ``fit``.

    Attributes:
        projection: ``(D, M)``, ``V P``.
        centre: ``(M,)``, ``c``.
        metric: ``(M, M)``, ``W^(-1/2)``, upper triangular.
        likeness: expected cosine of ``k`` of two images of one base class, a scalar.
    """

    shares_buffers = True  # with snapshots of the head: they are replaced, never written to
    projection: Tensor
    centre: Tensor
    metric: Tensor
    likeness: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, shape in (("projection", (0, 0)), ("centre", (0,)), ("metric", (0, 0)), ("likeness", ())):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float32))

    @property
    def fitted(self) -> bool:
        """Whether there is anything to compute."""
        return len(self.centre) > 0

    def fits(self, width: int) -> bool:
        """Return whether these are random features of ``z`` of a width, or none."""
        held = [tuple(part.shape) for part in (self.projection, self.centre, self.metric)]
        features = len(self.centre)
        return held in ([(width, features), (features,), (features, features)], [(0, 0), (0,), (0, 0)])

    def fit(self, space: BaseSpace, directions: Tensor, targets: Tensor, width: int, seed: int = 0) -> None:
        """Draw ``P`` and estimate the rest.

        Args:
            space: of base classes.
            directions: ``(n, D)``, ``z`` of images of base classes.
            targets: ``(n,)`` long, their classes from 0.
            width: ``M``.
            seed: of ``P``.
        """
        differ = space.prototypes - space.prototypes.mean(dim=0)
        _, lengths, axes = torch.linalg.svd(differ.double().cpu(), full_matrices=False)
        axes = axes[lengths > 1e-6 * lengths.max().clamp_min(1e-12)]
        drawn = torch.randn(len(axes), width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.projection = (axes.mT @ drawn).to(self.likeness)
        counts = torch.bincount(targets).unsqueeze(-1).cpu()
        means = _sums(targets, len(counts), directions, self._raised) / counts
        covariance = _scatter(targets, means, directions, self._raised) / max(len(targets) - len(counts), 1)
        size = covariance.diagonal().mean().clamp_min(1e-12)
        shrunk = (1 - _IDENTITY_SHARE) * covariance / size + _IDENTITY_SHARE * torch.eye(width, dtype=torch.float64)
        factor = torch.linalg.cholesky(shrunk)
        eye = torch.eye(width, dtype=torch.float64)
        self.metric = torch.linalg.solve_triangular(factor, eye, upper=False).mT.contiguous().to(self.likeness)
        self.centre = means.mean(dim=0).to(self.likeness)
        sums = _sums(targets, len(counts), directions, self)
        many = counts.squeeze(-1) > 1
        lengths = (sums / counts).square().sum(dim=-1)[many]
        number = counts.squeeze(-1)[many].double()
        alike = ((lengths * number - 1) / (number - 1)).mean() if bool(many.any()) else torch.zeros(())
        self.likeness = alike.clamp_min(0).to(self.likeness)

    def _raised(self, directions: Tensor) -> Tensor:
        return unit(torch.relu(directions @ self.projection.to(directions)))

    def forward(self, directions: Tensor) -> Tensor:
        """Return ``k`` ``(..., M)`` of ``z`` ``(..., D)``."""
        return unit((self._raised(directions) - self.centre.to(directions)) @ self.metric.to(directions))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, buffer in list(self.named_buffers()):
            loaded = state_dict.get(prefix + name)
            if loaded is None:  # files of before
                state_dict[prefix + name] = buffer
            else:
                setattr(self, name, buffer.new_empty(loaded.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _sums(targets: Tensor, classes: int, directions: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return sums by class ``(B, M)`` of a function of rows, in float64 on the CPU."""
    sums = torch.zeros(())
    for some, its in zip(torch.split(directions, _ROWS), torch.split(targets, _ROWS), strict=True):
        rows = function(some.float()).cpu().double()
        sums = sums if sums.dim() else torch.zeros(classes, rows.shape[-1], dtype=torch.float64)
        sums.index_add_(0, its.cpu(), rows)
    return sums


def _scatter(targets: Tensor, means: Tensor, directions: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the sum of products ``(M, M)`` of a function of rows about class means ``(B, M)``, on the CPU.

    Means are taken off before the products, not after: where classes are tight the rest would be smaller than the rounding of what
    it is taken from, and no covariance.
    """
    products = torch.zeros((), dtype=torch.float64)
    for some, its in zip(torch.split(directions, _ROWS), torch.split(targets, _ROWS), strict=True):
        rows = function(some.float()).cpu() - means[its.cpu()].float()
        products = products + rows.mT @ rows
    return products
