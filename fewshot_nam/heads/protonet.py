"""Euclidean prototypes: minus the squared distance between a query and the mean feature of each class.

Source: Snell et al., "Prototypical Networks for Few-shot Learning" (2017), equations 1 and 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_nam.heads.base import Head, Support


class ProtoNetHead(Head, gather_free=True):
    """Scores ``-|x - prototype|^2``, a prototype being the mean of its class's features. Lengths matter.

    Args:
        base: its mean is subtracted from every feature first; ``None`` subtracts nothing.

    Example:
        >>> ProtoNetHead().write(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), ["cat", "dog"])(torch.tensor([1.0, 2.0]))
        tensor([-4., -2.])
    """

    def _learn(self, support: Support) -> Tensor:
        """Return the prototypes ``(E, C, D)``."""
        return support.with_base(support.base, support.class_means(support.features))

    def _learn_more(self, learned: Tensor, added: Support) -> Tensor:
        return torch.cat([learned, self._learn(added)], dim=1)

    def _score(self, learned: Tensor, query: Tensor) -> Tensor:
        # Distances are the same from any origin. From this one, squares of features with a large mean do not cancel.
        origin = learned.mean(dim=-2, keepdim=True)
        return super()._score(learned - origin, query - origin)

    def _class_weights(self, learned: Tensor) -> Tensor:
        return learned

    def _scores_from(self, learned: Tensor, products: Tensor, lengths: Tensor) -> Tensor:
        """Return minus squared distances ``(E, Q, C)``."""
        return 2 * products - lengths.square() - learned.square().sum(dim=-1).unsqueeze(-2)
