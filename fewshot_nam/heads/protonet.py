"""Euclidean prototypes: minus the squared distance between a query and the mean feature of each class.

Source: Snell et al., "Prototypical Networks for Few-shot Learning" (2017), equations 1 and 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_nam.heads.base import Head, Support


class ProtoNetHead(Head):
    """Scores ``-|x - prototype|^2``, a prototype being the mean of its class's features, whose lengths count."""

    def _learn(self, support: Support) -> Tensor:
        """Return the prototypes ``(E, C, D)``."""
        return support.with_base(support.base, support.class_means(support.features))

    def _score(self, learned: Tensor, query: Tensor) -> Tensor:
        """Return minus squared distances ``(E, Q, C)``."""
        lengths = torch.linalg.vector_norm(query, dim=-1, keepdim=True).square()
        return 2 * (query @ learned.mT) - lengths - learned.square().sum(dim=-1).unsqueeze(-2)
