"""Ridge regression onto one-hot classes, in closed form.

Sources: Bertinetto et al., "Meta-learning with differentiable closed-form solvers" (2019), equations 4 to 6; the intercept is
that of scikit-learn's ``Ridge``, which gives the same scores. A block-mode NAM that is written into an
empty memory is this without intercept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewshot_nam.heads.base import Head, Support
from fewshot_nam.heads.base_statistics import BaseStatistics, accepts_old_base_words
from fewshot_nam.memory.primitives import unit, write_block


class RidgeHead(Head):
    """Scores ``W x + b`` that minimise ``|W x + b - y|^2 + ridge |W|^2`` over unit features, with ``y`` 1 or 0.

    A base class takes part with its prototype as one feature.

    Args:
        ridge: weight of the penalty, above 0.
        base: its mean is subtracted from every feature first; ``None`` subtracts nothing.

    Raises:
        ValueError: the ridge is not above 0.

    Example:
        >>> RidgeHead(0.1).write(torch.eye(2), ["cat", "dog"]).predict(torch.tensor([1.0, 3.0]))
        'dog'
    """

    @accepts_old_base_words
    def __init__(self, ridge: float = 1.0, *, base: BaseStatistics | None = None) -> None:
        super().__init__(base)
        if not 0 < ridge < math.inf:
            raise ValueError(f"RidgeHead: ridge must be above 0, got {ridge}")
        self.ridge = ridge

    def _learn(self, support: Support) -> tuple[Tensor, Tensor]:
        """Return weights ``(E, C, D)`` and intercepts ``(E, C)``."""
        features = support.with_base(unit(support.base), unit(support.features))
        values = torch.eye(support.columns, dtype=features.dtype, device=features.device)
        values = torch.cat([values[: len(support.base)], support.one_hot()])
        mean, share = features.mean(dim=1, keepdim=True), values.mean(dim=0)
        empty = features.new_zeros(len(features), support.columns, features.shape[-1])
        targets = (values - share).expand(len(features), -1, -1)
        weights = write_block(empty, features - mean, targets, ridge=self.ridge)
        return weights, share - (mean @ weights.mT).squeeze(1)

    def _score(self, learned: tuple[Tensor, Tensor], query: Tensor) -> Tensor:
        """Return regressed class indicators ``(E, Q, C)``."""
        weights, intercepts = learned
        return unit(query) @ weights.mT + intercepts.unsqueeze(-2)

    def extra_repr(self) -> str:
        """Return how strong the penalty is."""
        return f"ridge={self.ridge}, {super().extra_repr()}"
