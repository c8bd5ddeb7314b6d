"""LaplacianShot: queries that lie close together are given the same class, a transductive head.

From rectified prototypes (``fewshot_nam.heads.bd_cspn``) with squared distances ``a``, assignments ``y`` of queries to classes are
found by repeating ``y <- softmax(-a + l W y)``, where ``W`` links each query to its nearest others.

Source: Ziko et al., "Laplacian Regularized Few-Shot Learning" (2020), equations 3 and 8.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewshot_nam.heads.base_statistics import BaseStatistics
from fewshot_nam.heads.bd_cspn import BDCSPNHead, Learned
from fewshot_nam.heads.validation import check_steps


class LaplacianShotHead(BDCSPNHead):
    """Scores are ``-a + l W y`` after the last step, the logits of the assignments.

    Args:
        laplacian_weight: ``l``, at least 0.
        neighbours: how many other queries each is linked to, at least 1.
        steps: at least 0.
        sharpness: of the rectified prototypes, above 0.
        base: its mean is subtracted from every feature first; ``None`` subtracts nothing.

    Raises:
        ValueError: a number outside its range.
    """

    def __init__(
        self,
        laplacian_weight: float = 0.7,
        neighbours: int = 3,
        steps: int = 20,
        *,
        sharpness: float = 10.0,
        base: BaseStatistics | None = None,
    ) -> None:
        super().__init__(sharpness, base=base)
        if not 0 <= laplacian_weight < math.inf:
            raise ValueError(f"LaplacianShotHead: laplacian_weight must be at least 0, got {laplacian_weight}")
        if neighbours < 1:
            raise ValueError(f"LaplacianShotHead: neighbours must be at least 1, got {neighbours}")
        check_steps("LaplacianShotHead", steps)
        self.laplacian_weight, self.neighbours, self.steps = laplacian_weight, neighbours, steps

    def _score(self, learned: Learned, query: Tensor) -> Tensor:
        """Return the logits of the assignments ``(E, Q, C)``."""
        prototypes, query = self._rectified(learned, query)
        squares = query.square().sum(dim=-1, keepdim=True) + prototypes.square().sum(dim=-1).unsqueeze(-2)
        logits = first = 2 * query @ prototypes.mT - squares
        count = query.shape[1]
        if count < 2:
            return logits
        products = query @ query.mT
        lengths = products.diagonal(dim1=-2, dim2=-1)
        closeness = 2 * products - lengths.unsqueeze(-2) - lengths.unsqueeze(-1)
        closeness = closeness.masked_fill(torch.eye(count, dtype=torch.bool, device=query.device), -torch.inf)
        nearest = closeness.topk(min(self.neighbours, count - 1), dim=-1).indices
        links = torch.zeros_like(closeness).scatter_(-1, nearest, 1.0)
        for _ in range(self.steps):
            logits = first + self.laplacian_weight * links @ logits.softmax(dim=-1)
        return logits

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"laplacian_weight={self.laplacian_weight}, neighbours={self.neighbours}, steps={self.steps}, {super().extra_repr()}"
