"""Nearest neighbour: the cosine between a query and the most similar image of each class.

Source: Cover and Hart, "Nearest Neighbor Pattern Classification" (1967); by cosine as in Vinyals et al., "Matching Networks for
One Shot Learning" (2016), the limit of their attention at temperature 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_nam.heads.base import Head, Support
from fewshot_nam.memory.primitives import unit


class NearestHead(Head):
    """Scores ``max cos(x, s)`` over the support features ``s`` of each class; a base class has its prototype alone.

    Args:
        base: its mean is subtracted from every feature first; ``None`` subtracts nothing.

    Example:
        >>> head = NearestHead().write(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), ["cat", "cat", "dog"])
        >>> head(torch.tensor([0.6, 0.8]))
        tensor([1.0000, 0.8000])
    """

    def _learn(self, support: Support) -> tuple[Tensor, Tensor, int]:
        """Return unit features ``(E, B + n, D)``, the column of each, and the number of columns."""
        first = torch.arange(len(support.base), device=support.targets.device)
        features = support.with_base(unit(support.base), unit(support.features))
        return features, torch.cat([first, support.targets]), support.columns

    def _score(self, learned: tuple[Tensor, Tensor, int], query: Tensor) -> Tensor:
        """Return the largest cosine to each class, ``(E, Q, C)``."""
        features, targets, columns = learned
        cosines = unit(query) @ features.mT
        scores = cosines.new_full((*cosines.shape[:-1], columns), -torch.inf)
        return scores.scatter_reduce(-1, targets.expand_as(cosines), cosines, "amax")
