"""TEEN: the means of new classes are moved towards those of base classes that look like them, without training.

    w_cb = softmax_b(t cos(m_c, m_b));   m'_c = (1 - a) m_c + a sum_b w_cb m_b;   score = cos(x, m'_c)

Source: Wang et al., "Few-Shot Class-Incremental Learning via Training-Free Prototype Calibration" (2023), equations 6 to 8; ``a``
is 0.5 and ``t`` is 16 there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewshot_nam.heads.base import Head, Support
from fewshot_nam.heads.base_statistics import BaseStatistics, StoredBaseStatistics
from fewshot_nam.memory.primitives import unit


def base_weights(means: Tensor, base: Tensor, temperature: float) -> Tensor:
    """Return ``softmax_b(temperature cos(m_c, m_b))`` ``(..., N, B)`` of means ``(..., N, D)`` and base means ``(B, D)``."""
    return torch.softmax(temperature * unit(means) @ unit(base).mT, dim=-1)


def calibrated_means(means: Tensor, base: Tensor, share: float, temperature: float) -> Tensor:
    """Return means ``(..., N, D)``, a ``share`` of which is replaced by that of base classes ``(B, D)`` that are like them."""
    return (1 - share) * means + share * base_weights(means, base, temperature) @ base


class TEENHead(Head):
    """Scores by cosine to calibrated class means, as at the top of this file. Base classes in the label space stay as they are.

    Args:
        base: of which the prototypes are used.
        share: ``a``, 0 to 1.
        temperature: ``t``, above 0: the larger, the fewer base classes take part.

    Raises:
        ValueError: no base classes, or a number outside its range.

    Example:
        >>> base = BaseStatistics.from_prototypes(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        >>> TEENHead(base).write(torch.tensor([1.0, 0.0, 1.0]), "cat")(torch.eye(3)).round(decimals=4)
        tensor([[0.8944],
                [0.0000],
                [0.4472]])
    """

    def __init__(self, base: BaseStatistics | None = None, *, share: float = 0.5, temperature: float = 16.0) -> None:
        if base is None or not len(base):
            raise ValueError("TEENHead: needs base, the statistics of base classes")
        if not 0 <= share <= 1:
            raise ValueError(f"TEENHead: share must be from 0 to 1, got {share}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"TEENHead: temperature must be above 0, got {temperature}")
        super().__init__()
        self.share, self.temperature = share, temperature
        self.stored_base = StoredBaseStatistics(base)

    def _fixed_width(self) -> int:
        return len(self.stored_base.mean)

    def _learn(self, support: Support) -> Tensor:
        """Return the directions of class means ``(E, C, D)``."""
        means = support.class_means(support.features)
        prototypes = self.stored_base.prototypes.to(means)
        return unit(support.with_base(support.base, calibrated_means(means, prototypes, self.share, self.temperature)))

    def _score(self, learned: Tensor, query: Tensor) -> Tensor:
        return unit(query) @ learned.mT

    def extra_repr(self) -> str:
        """Return the constants."""
        return f"share={self.share}, temperature={self.temperature}, {super().extra_repr()}"
