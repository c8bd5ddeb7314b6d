"""Matching by attention: a query's class probabilities are those of the support, weighted by attention.

Source: Vinyals et al., "Matching Networks for One Shot Learning" (2016), equations 1 and 2. Departures: without the paper's
full context embeddings, which are trained; and the softmax over cosines has a temperature, since untrained cosines are close
together.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewshot_nam.heads.base import Head, Support
from fewshot_nam.heads.base_statistics import BaseStatistics
from fewshot_nam.memory.primitives import unit


class MatchingHead(Head):
    """Scores ``log sum_{i of class c} exp(cos(x, s_i) / T)`` over the support, minus the same over all of it.

    Args:
        temperature: ``T``, above 0.
        base: its mean is subtracted from every feature first; ``None`` subtracts nothing.

    Raises:
        ValueError: a temperature that is not above 0.

    Example:
        >>> MatchingHead().write(torch.eye(2), ["cat", "dog"]).predict(torch.tensor([1.0, 3.0]))
        'dog'
    """

    def __init__(self, temperature: float = 0.1, *, base: BaseStatistics | None = None) -> None:
        super().__init__(base)
        if not 0 < temperature < math.inf:
            raise ValueError(f"MatchingHead: temperature must be above 0, got {temperature}")
        self.temperature = temperature

    def _learn(self, support: Support) -> tuple[Tensor, Tensor]:
        """Return unit features ``(E, n, D)``, and which class each is of, ``(n, C)``."""
        features = support.with_base(unit(support.base), unit(support.features))
        return features, torch.nn.functional.one_hot(support.all_targets(), support.columns).to(features)

    def _score(self, learned: tuple[Tensor, Tensor], query: Tensor) -> Tensor:
        """Return log-probabilities ``(E, Q, C)``."""
        features, members = learned
        attention = (unit(query) @ features.mT / self.temperature).softmax(dim=-1)
        return (attention @ members).clamp_min(torch.finfo(attention.dtype).tiny).log()

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"temperature={self.temperature}, {super().extra_repr()}"
