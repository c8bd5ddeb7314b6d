"""Nearest class mean under a covariance that is estimated from the support and shrunk towards the identity.

Sources: Friedman, "Regularized Discriminant Analysis" (1989; pooled scatter plus a ridge); Hastie et al., "The
Elements of Statistical Learning" (2009), section 18.2 (diagonal covariances); Liu et al., "Few-Shot Open-Set Recognition Using
Meta-Learning" (PEELER, 2020; a Gaussian a class whose precision is diagonal). PEELER's network learns to predict the
precision from the support; without that training, what is left of it is the variance of the support itself.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from fewshot_nam.heads.base import Head, Support
from fewshot_nam.heads.base_statistics import BaseStatistics, accepts_old_base_words
from fewshot_nam.memory.primitives import unit

Covariance = Literal["pooled", "diagonal"]


class MahalanobisHead(Head):
    """Scores ``-(x - m)^T A^-1 (x - m)`` over unit features, with ``m`` the class mean and ``A = I + S / ridge``.

    With one shot of every class ``S`` is 0 and this is the Euclidean distance between unit features, cosine's ranking. A base
    class has its prototype for a mean, and takes no part in ``S``.

    Args:
        covariance: ``"pooled"``: ``S`` is the scatter of all support about its class means, divided by ``n - N``.
            ``"diagonal"``: every class has the variances of its own shots, divided by ``K``.
        ridge: variance that ``S`` is compared with, above 0, on the scale of unit features. Larger shrinks more; ``None``: 0.1
            for pooled, 0.03 for diagonal.
        base: its mean is subtracted from every feature first; ``None`` subtracts nothing.

    Raises:
        ValueError: an unknown covariance, or a ridge that is not above 0.

    Example:
        >>> MahalanobisHead().write(torch.eye(2), ["cat", "dog"]).predict(torch.tensor([1.0, 3.0]))
        'dog'
    """

    @accepts_old_base_words
    def __init__(
        self, covariance: Covariance = "pooled", *, ridge: float | None = None, base: BaseStatistics | None = None
    ) -> None:
        super().__init__(base)
        if covariance not in ("pooled", "diagonal"):
            raise ValueError(f"MahalanobisHead: covariance must be one of pooled, diagonal, got {covariance!r}")
        ridge = (0.1 if covariance == "pooled" else 0.03) if ridge is None else ridge
        if not 0 < ridge < math.inf:
            raise ValueError(f"MahalanobisHead: ridge must be above 0, got {ridge}")
        self.covariance, self.ridge = covariance, ridge

    def _learn(self, support: Support) -> tuple[Tensor, Tensor]:
        """Return means ``(E, C, D)``, and ``P`` ``(E, n, D)`` with ``A^-1 = I - P^T P``, or precisions ``(E, C, D)``."""
        features = unit(support.features)
        written = support.class_means(features)
        means = support.with_base(unit(support.base), written)
        apart = features - support.one_hot()[:, len(support.base) :] @ written
        if self.covariance == "diagonal":
            variances = support.class_means(apart.square())
            return means, 1 / (1 + support.with_base(torch.zeros_like(support.base), variances) / self.ridge)
        freedom = max(features.shape[1] - written.shape[1], 1)  # no freedom, no scatter: one shot each
        apart = apart / math.sqrt(self.ridge * freedom)
        # Woodbury's identity: the support has few features, so this is n x n where A is D x D.
        inner = torch.eye(features.shape[1], dtype=features.dtype, device=features.device) + apart @ apart.mT
        return means, torch.linalg.solve_triangular(torch.linalg.cholesky(inner), apart, upper=False)

    def _score(self, learned: tuple[Tensor, Tensor], query: Tensor) -> Tensor:
        """Return minus squared distances ``(E, Q, C)``."""
        means, other = learned
        query = unit(query)
        if self.covariance == "diagonal":
            weighted = means * other
            return 2 * (query @ weighted.mT) - query.square() @ other.mT - (weighted * means).sum(dim=-1).unsqueeze(-2)
        return _distances(query @ other.mT, means @ other.mT) - _distances(query, means)

    def extra_repr(self) -> str:
        """Return which covariance it is and how far it is shrunk."""
        return f"covariance={self.covariance}, ridge={self.ridge}, {super().extra_repr()}"


def _distances(query: Tensor, means: Tensor) -> Tensor:
    """Return ``|q - m|^2`` for ``(E, Q, d)`` and ``(E, C, d)``, as ``(E, Q, C)``."""
    lengths = query.square().sum(dim=-1, keepdim=True) + means.square().sum(dim=-1).unsqueeze(-2)
    return lengths - 2 * (query @ means.mT)
