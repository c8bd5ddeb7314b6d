"""FEAT: prototypes that attend to one another, by an attention that is trained on episodes of base classes.

``P' = LayerNorm(P + F softmax(Q P (K P)^T / sqrt(D)) V P)`` for the prototypes ``P`` of an episode; scores are minus squared
distances to ``P'``, divided by a temperature. Features are centred by the mean base feature and scaled to length ``sqrt(D)``, as
those that leave the layer norm.

Source: Ye et al., "Few-Shot Learning via Embedding Adaptation With Set-to-Set Functions" (2020), equations 4 to 7. Departures: the
backbone is frozen, so that all heads are compared on the same features; ``F`` starts at 0, so that training starts from the
prototypes; no contrastive loss.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from fewshot_nam.heads import BaseStatistics
from fewshot_nam.heads.base import Head, Support
from fewshot_nam.memory.primitives import unit

_TEMPERATURE = 64.0


class FEATHead(Head):
    """Scores ``-|x - P'_c|^2 / 64``. A base class in the label space is one more prototype that attends.

    Args:
        width: ``D``, at least 1.
        base: its ``mean`` is subtracted from every feature; ``None`` for no centring.

    Raises:
        ValueError: a width below 1.
    """

    def __init__(self, width: int, *, base: BaseStatistics | None = None) -> None:
        super().__init__(base)
        if width < 1:
            raise ValueError(f"FEATHead: width must be at least 1, got {width}")
        self.width = width
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        for layer in (self.query, self.key, self.value):
            nn.init.normal_(layer.weight, std=width**-0.5)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.requires_grad_(False)

    @property
    def feature_dim(self) -> int:
        """Width of the features, which the attention fixes."""
        return self.width

    def _fixed_width(self) -> int:
        return self.width

    def _embed(self, features: Tensor) -> Tensor:
        return unit(super()._embed(features)) * math.sqrt(self.width)

    def _learn(self, support: Support) -> Tensor:
        """Return the adapted prototypes ``(E, C, D)``."""
        prototypes = support.with_base(support.base, support.class_means(support.features)).to(self.out.weight)
        products = self.query(prototypes) @ self.key(prototypes).mT / math.sqrt(self.width)
        adapted: Tensor = self.norm(prototypes + self.out(products.softmax(dim=-1) @ self.value(prototypes)))
        return adapted

    def _score(self, learned: Tensor, query: Tensor) -> Tensor:
        """Return minus squared distances ``(E, Q, C)``."""
        query = query.to(learned)
        squares = query.square().sum(dim=-1, keepdim=True) + learned.square().sum(dim=-1).unsqueeze(-2)
        return (2 * query @ learned.mT - squares) / _TEMPERATURE

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of scores ``(n, C)`` for targets ``(n,)``."""
        return nn.functional.cross_entropy(scores, targets)

    def extra_repr(self) -> str:
        """Return the settings for ``repr``."""
        return f"width={self.width}, {super().extra_repr()}"
