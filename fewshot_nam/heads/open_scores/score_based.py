"""Open-set scores that need nothing but the scores of the head: MSP, energy and GEN.

Sources: Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples" (2017); Liu et al.,
"Energy-based Out-of-distribution Detection" (2020), equation 4; Liu et al., "GEN: Pushing the Limits of Softmax-Based
Out-of-Distribution Detection" (2023), equation 4.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fewshot_nam.heads.open_scores.open_score import OpenScore


class MSPScore(OpenScore):
    """The largest softmax probability, ``max_c softmax(s / T)_c``.

    Args:
        temperature: see ``OpenScore``.

    Example:
        >>> MSPScore()(torch.tensor([[[2.0, 2.0]]]), None, torch.empty(1, 1, 0)).item()
        0.5
    """

    def forward(self, scores: Tensor, learned: Any, embedded: Tensor) -> Tensor:
        """Return the largest probability ``(E, Q)``."""
        return self._logits(scores).softmax(dim=-1).amax(dim=-1)


class EnergyScore(OpenScore):
    """Minus the energy: ``T log sum_c exp(s_c / T)``.

    Args:
        temperature: see ``OpenScore``.
    """

    def forward(self, scores: Tensor, learned: Any, embedded: Tensor) -> Tensor:
        """Return minus the energy ``(E, Q)``."""
        return self.temperature.to(scores) * torch.logsumexp(self._logits(scores), dim=-1)


class GENScore(OpenScore):
    """Minus the generalised entropy: ``-sum_c p_c^g (1 - p_c)^g`` over the largest probabilities.

    Args:
        gamma: ``g``, above 0 and below 1.
        largest: over how many probabilities it is summed, at least 1.
        temperature: see ``OpenScore``.

    Raises:
        ValueError: a number outside its range.
    """

    def __init__(self, gamma: float = 0.1, largest: int = 100, *, temperature: float | None = None) -> None:
        super().__init__(temperature)
        if not 0 < gamma < 1 or math.isnan(gamma):
            raise ValueError(f"GENScore: gamma must be above 0 and below 1, got {gamma}")
        if largest < 1:
            raise ValueError(f"GENScore: largest must be at least 1, got {largest}")
        self.gamma, self.largest = gamma, largest

    def forward(self, scores: Tensor, learned: Any, embedded: Tensor) -> Tensor:
        """Return minus the generalised entropy ``(E, Q)``."""
        logits = self._logits(scores)
        logits = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
        logits = logits.topk(min(self.largest, logits.shape[-1]), dim=-1).values
        # In logarithms: a probability near 1 has 1 - p near 0, where the power is steep.
        others = torch.log(-torch.expm1(logits.clamp_max(-torch.finfo(logits.dtype).tiny)))
        return -(self.gamma * (logits + others)).exp().sum(dim=-1)

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"gamma={self.gamma}, largest={self.largest}"
