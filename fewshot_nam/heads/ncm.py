"""Nearest class mean: the cosine between a feature and the mean feature of each class, features as they are.

Sources: Mensink et al., "Distance-Based Image Classification: Generalizing to New Classes at Near-Zero Cost" (2013); by cosine, as
the frozen baseline of few-shot class-incremental learning (Zhang et al., "Few-Shot Incremental Learning with Continually Evolved
Classifiers", 2021, there "Decoupled-Cosine").
"""

from __future__ import annotations

from torch import Tensor

from fewshot_nam.heads.base import Head, Support
from fewshot_nam.memory.primitives import unit


class NCMHead(Head):
    """Scores ``cos(x, m_c)`` with ``m_c`` the mean of the features of class ``c``.

    ``CosineHead`` averages directions, this one features: an image with long features counts for more.

    Args:
        base: its mean is subtracted from every feature first; ``None`` subtracts nothing.

    Example:
        >>> import torch
        >>> NCMHead().write(torch.tensor([[4.0, 0.0], [0.0, 2.0], [0.0, 1.0]]), ["cat", "cat", "dog"])(torch.tensor([1.0, 0.0]))
        tensor([0.8944, 0.0000])
    """

    def _learn(self, support: Support) -> Tensor:
        """Return the directions of class means ``(E, C, D)``."""
        return unit(support.with_base(support.base, support.class_means(support.features)))

    def _score(self, learned: Tensor, query: Tensor) -> Tensor:
        return unit(query) @ learned.mT
