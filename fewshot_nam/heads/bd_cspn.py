"""BD-CSPN: prototypes rectified by the queries, a transductive head.

The queries are shifted so that their mean is that of the support (the cross-class bias), each is given the class whose prototype
is nearest by cosine, and a prototype becomes the mean of all features of its class, weighted by ``exp(e cos)`` (the intra-class
bias).

Source: Liu et al., "Prototype Rectification for Few-Shot Learning" (2020), equations 3 to 6. As in easyfsl all queries take part,
not only the most certain.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fewshot_nam.heads.base import Head, Support
from fewshot_nam.heads.base_statistics import BaseStatistics
from fewshot_nam.memory.primitives import unit


class Learned(NamedTuple):
    """What was learned from the support.

    Attributes:
        prototypes: ``(E, C, D)``, means of unit features.
        features: ``(E, n, D)``, unit features of the support and of base classes in the label space.
        targets: ``(n, C)``, 1 where a feature is of a class and 0 elsewhere.
    """

    prototypes: Tensor
    features: Tensor
    targets: Tensor


class BDCSPNHead(Head):
    """Scores are cosines of queries with rectified prototypes.

    Args:
        sharpness: ``e``, above 0.
        base: its mean is subtracted from every feature first; ``None`` subtracts nothing.

    Raises:
        ValueError: a sharpness that is not above 0.

    Example:
        >>> BDCSPNHead().write(torch.eye(2), ["cat", "dog"]).predict(torch.tensor([[1.0, 0.2], [0.3, 1.0]]))
        ['cat', 'dog']
    """

    transductive = True

    def __init__(self, sharpness: float = 10.0, *, base: BaseStatistics | None = None) -> None:
        super().__init__(base)
        if not 0 < sharpness < math.inf:
            raise ValueError(f"{type(self).__name__}: sharpness must be above 0, got {sharpness}")
        self.sharpness = sharpness

    def _learn(self, support: Support) -> Learned:
        """Return prototypes, and what rectifying them takes."""
        features = support.with_base(unit(support.base), unit(support.features))
        members = torch.nn.functional.one_hot(support.all_targets(), support.columns).to(features)
        return Learned((members / members.sum(dim=0)).mT @ features, features, members)

    def _rectified(self, learned: Learned, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return rectified prototypes ``(E, C, D)``, and shifted unit queries ``(E, Q, D)``."""
        query = unit(query)
        if query.shape[1]:
            query = query + learned.features.mean(dim=1, keepdim=True) - query.mean(dim=1, keepdim=True)
        rows = torch.cat([learned.features, query], dim=1)
        cosines = unit(rows) @ unit(learned.prototypes).mT
        found = torch.nn.functional.one_hot(cosines[:, len(learned.targets) :].argmax(dim=-1), cosines.shape[-1])
        members = torch.cat([learned.targets.expand(len(rows), -1, -1), found.to(rows)], dim=1)
        weights = members * (self.sharpness * (cosines - 1)).exp()
        return (weights / weights.sum(dim=1, keepdim=True)).mT @ rows, query

    def _score(self, learned: Learned, query: Tensor) -> Tensor:
        """Return cosines ``(E, Q, C)``."""
        prototypes, query = self._rectified(learned, query)
        return unit(query) @ unit(prototypes).mT

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"sharpness={self.sharpness}, {super().extra_repr()}"
