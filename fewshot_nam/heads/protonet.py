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
        # Around the prototypes' middle m, |q - c|^2 = |q - m|^2 - 2 (q - m).(c - m) + |c - m|^2: what tells classes apart is
        # then a difference of small numbers, and no shifted copy of the many queries is needed.
        middle = learned.mean(dim=-2, keepdim=True)
        apart = learned - middle
        products = query @ torch.cat([middle, apart], dim=-2).mT
        from_middle = torch.linalg.vector_norm(query, dim=-1, keepdim=True).square() - 2 * products[..., :1]
        from_middle = from_middle + middle.square().sum(dim=-1, keepdim=True)
        offsets = (2 * (middle * apart) + apart.square()).sum(dim=-1).unsqueeze(-2)
        return 2 * products[..., 1:] - offsets - from_middle
