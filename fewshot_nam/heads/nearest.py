"""Nearest neighbour: the cosine between a query and the most similar picture of each class.

Source: Cover and Hart, "Nearest Neighbor Pattern Classification" (1967); by cosine as in Vinyals et al., "Matching Networks for
One Shot Learning" (2016), whose attention it is at temperature 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_nam.heads.base import Head, Support
from fewshot_nam.memory.primitives import unit


class NearestHead(Head):
    """Scores ``max cos(x, s)`` over the support features ``s`` of each class; a base class has its prototype alone."""

    def _learn(self, support: Support) -> tuple[Tensor, Tensor, int]:
        """Return unit features ``(E, B + n, D)``, the column of each, and the number of columns."""
        first = torch.arange(len(support.base), device=support.targets.device)
        rows = support.with_base(unit(support.base), unit(support.features))
        return rows, torch.cat([first, support.targets]), support.columns

    def _score(self, learned: tuple[Tensor, Tensor, int], query: Tensor) -> Tensor:
        """Return the largest cosine to each class, ``(E, Q, C)``."""
        rows, targets, columns = learned
        cosines = unit(query) @ rows.mT
        scores = cosines.new_full((*cosines.shape[:-1], columns), -torch.inf)
        return scores.scatter_reduce(-1, targets.expand_as(cosines), cosines, "amax")
