"""Euclidean prototypes: minus the squared distance between a query and the mean feature of each class.

Source: Snell et al., "Prototypical Networks for Few-shot Learning" (2017), equations 1 and 2.
"""

from __future__ import annotations

from torch import Tensor

from fewshot_nam.heads.base import Head, Support


class ProtoNetHead(Head):
    """Scores ``-|x - prototype|^2``, a prototype being the mean of its class's features, whose lengths count."""

    def _learn(self, support: Support) -> Tensor:
        """Return the prototypes ``(E, C, D)``."""
        return support.with_base(support.base, support.class_means(support.features))

    def _score(self, learned: Tensor, query: Tensor) -> Tensor:
        """Return minus squared distances ``(E, Q, C)``."""
        # Distances do not change when everything is shifted; around the prototypes' mean less is lost to rounding.
        middle = learned.mean(dim=-2, keepdim=True)
        learned, query = learned - middle, query - middle
        lengths = query.square().sum(dim=-1, keepdim=True) + learned.square().sum(dim=-1).unsqueeze(-2)
        return 2 * (query @ learned.mT) - lengths
