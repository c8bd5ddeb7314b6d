"""Open-set scores that are distances to what was learned: KNN and the relative Mahalanobis distance.

Sources: Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors" (2022); Ren et al., "A Simple Fix to Mahalanobis
Distance for Improving Near-OOD Detection" (2021). As in OpenOOD, ``KNNScore`` is minus the *squared* distance, which has the same
order. Departure, since there are few shots: class means are those of the shots, and both covariances of ``RMDSScore`` are those of
base classes, where OpenOOD takes all three from the training images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_nam.heads.base import Support
from fewshot_nam.heads.open_scores.open_score import OpenScore
from fewshot_nam.memory.primitives import unit

_ROWS = 4096  # features converted to float64 at a time


class KNNScore(OpenScore):
    """Minus the squared distance between the unit feature of a query and the k-th nearest shot of any class.

    Args:
        neighbours: ``k``, at least 1; with fewer shots than this the farthest counts. A base class has its prototype alone.

    Raises:
        ValueError: fewer than 1 neighbour.
    """

    uses_scores = False

    def __init__(self, neighbours: int = 1) -> None:
        super().__init__()
        if neighbours < 1:
            raise ValueError(f"KNNScore: neighbours must be at least 1, got {neighbours}")
        self.neighbours = neighbours

    def embed(self, features: Tensor) -> Tensor:
        """Return unit features ``(..., D)``."""
        return unit(features)

    def learn(self, support: Support) -> Tensor:
        """Return the unit features of all shots, ``(E, n, D)``."""
        return support.with_base(support.base, support.features)

    def forward(self, scores: Tensor, learned: Tensor, embedded: Tensor) -> Tensor:
        """Return minus the squared distance ``(E, Q)``."""
        cosines = embedded @ learned.mT
        return 2 * cosines.topk(min(self.neighbours, cosines.shape[-1]), dim=-1).values[..., -1] - 2

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"neighbours={self.neighbours}"


class RMDSScore(OpenScore):
    """``max_c -d_w(x, m_c)^2 + d_0(x, m_0)^2``: how much nearer a query is to a class than to all images there are.

    ``d_w`` is the Mahalanobis distance by the covariance of base images about their class means, ``d_0`` that by the covariance of
    all base images about their mean ``m_0``. Directions in which base images do not vary are left out.

    Args:
        unit_length: scale features to length 1 first.
    """

    needs_base = True
    uses_scores = False
    centre: Tensor
    within: Tensor
    total: Tensor

    def __init__(self, unit_length: bool = False) -> None:
        super().__init__()
        self.unit_length = unit_length
        self.register_buffer("centre", torch.empty(0))
        self.register_buffer("within", torch.empty(0, 0))
        self.register_buffer("total", torch.empty(0, 0))

    @property
    def fitted(self) -> bool:
        """Whether base classes are known."""
        return bool(self.centre.numel())

    def fit_classes(self, features: Tensor, targets: Tensor, classes: int) -> None:
        """Estimate both covariances from features ``(n, D)`` of base classes."""
        count, width = features.shape
        sums = torch.zeros(classes, width, dtype=torch.float64)
        squares = torch.zeros(width, width, dtype=torch.float64)
        shift = self._scaled(features[:_ROWS].double().cpu()).mean(dim=0)  # so that squares lose no digits
        for some, its in zip(torch.split(features, _ROWS), torch.split(targets, _ROWS), strict=True):
            rows = self._scaled(some.double().cpu()) - shift
            squares += rows.mT @ rows
            sums.index_add_(0, its.cpu(), rows)
        counts = torch.bincount(targets.cpu(), minlength=classes).unsqueeze(-1)
        mean = sums.sum(dim=0) / count
        within = (squares - (sums / counts.clamp_min(1)).mT @ sums) / count
        total = squares / count - torch.outer(mean, mean)
        self.centre = (mean + shift).to(features.device, torch.float32)
        self.within, self.total = (_whitening(each).to(self.centre) for each in (within, total))

    def _scaled(self, features: Tensor) -> Tensor:
        return unit(features) if self.unit_length else features

    def embed(self, features: Tensor) -> Tensor:
        """Return features as ``d_w`` measures them ``(..., D')`` and ``d_0^2`` ``(..., 1)``."""
        apart = self._scaled(features) - self.centre.to(features)
        background = (apart @ self.total.to(features)).square().sum(dim=-1, keepdim=True)
        return torch.cat([apart @ self.within.to(features), background], dim=-1)

    def learn(self, support: Support) -> Tensor:
        """Return the class means ``(E, C, D')``."""
        return support.with_base(support.base, support.class_means(support.features))[..., :-1]

    def forward(self, scores: Tensor, learned: Tensor, embedded: Tensor) -> Tensor:
        """Return the score ``(E, Q)``."""
        query = embedded[..., :-1]
        nearest = (query @ learned.mT - learned.square().sum(dim=-1).unsqueeze(-2) / 2).amax(dim=-1)
        return 2 * nearest - query.square().sum(dim=-1) + embedded[..., -1]

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"unit_length={self.unit_length}"


def _whitening(covariance: Tensor) -> Tensor:
    """Return ``(D, D')`` whose product with itself is the pseudo-inverse of a covariance ``(D, D)``."""
    values, axes = torch.linalg.eigh(covariance)
    kept = values > len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    return (axes[:, kept] * values[kept].rsqrt()).contiguous()
