"""Relation Networks on features: a small network scores pairs of prototype and query, trained on episodes of base classes.

Source: Sung et al., "Learning to Compare: Relation Network for Few-Shot Learning" (2018), equations 1 and 2: a relation score from
0 to 1, trained by squared error. Departures: the backbone is frozen, and gives vectors in place of feature maps, so the relation
module is linear layers in place of convolutions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fewshot_nam.heads import BaseStatistics
from fewshot_nam.heads.base import Head, Support
from fewshot_nam.memory.primitives import unit


class RelationHead(Head):
    """Scores ``sigmoid(v . relu(W [p_c; x; p_c * x] + b) + c)``, ``p_c`` being the mean of its class's features.

    Args:
        width: ``D``, at least 1.
        hidden: units of the hidden layer, at least 1.
        base: its ``mean`` is subtracted from every feature; ``None`` for no centring.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(self, width: int, hidden: int = 32, *, base: BaseStatistics | None = None) -> None:
        super().__init__(base)
        for name, number in (("width", width), ("hidden", hidden)):
            if number < 1:
                raise ValueError(f"RelationHead: {name} must be at least 1, got {number}")
        self.width = width
        # The hidden layer of a pair, in three parts: of the prototype, of the query, and of their product.
        self.of_class, self.of_query = nn.Linear(width, hidden), nn.Linear(width, hidden, bias=False)
        self.of_both, self.out = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, 1)
        self.requires_grad_(False)

    @property
    def feature_dim(self) -> int:
        """Width of the features, which the network fixes."""
        return self.width

    def _fixed_width(self) -> int:
        return self.width

    def _embed(self, features: Tensor) -> Tensor:
        return unit(super()._embed(features)) * math.sqrt(self.width)

    def _learn(self, support: Support) -> Tensor:
        """Return the prototypes ``(E, C, D)``."""
        return support.with_base(support.base, support.class_means(support.features)).to(self.out.weight)

    def _score(self, learned: Tensor, query: Tensor) -> Tensor:
        """Return relation scores ``(E, Q, C)``."""
        query = query.to(learned)
        both = torch.einsum("eqd,ehcd->eqch", query, self.of_both.weight[None, :, None] * learned.unsqueeze(1))
        hidden = self.of_query(query).unsqueeze(-2) + self.of_class(learned).unsqueeze(-3) + both
        scores: Tensor = self.out(hidden.relu()).squeeze(-1).sigmoid()
        return scores

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the squared error of scores ``(n, C)`` for targets ``(n,)``."""
        return nn.functional.mse_loss(scores, nn.functional.one_hot(targets, scores.shape[-1]).to(scores))

    def extra_repr(self) -> str:
        """Return the settings for ``repr``."""
        return f"width={self.width}, hidden={self.of_query.out_features}, {super().extra_repr()}"
