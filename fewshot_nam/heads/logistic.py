"""Logistic regression on unit features, fitted by scikit-learn.

Source: Tian et al., "Rethinking Few-Shot Image Classification: a Good Embedding Is All You Need?" (2020), section 3.3.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import Tensor

from fewshot_nam.heads.base import Head, Support
from fewshot_nam.heads.base_statistics import BaseStatistics, accepts_old_base_words
from fewshot_nam.memory.primitives import unit


class LogisticHead(Head):
    """Scores are the logits of scikit-learn's multinomial ``LogisticRegression``; two classes share the logit as ``-l/2, l/2``.

    The logit of a single class is 0. Every episode is a separate fit on the CPU and takes a few milliseconds: this head loops over
    episodes. A base class takes part with its prototype as one feature.

    Args:
        inverse_penalty: scikit-learn's ``C``: larger fits the support more closely.
        base: its mean is subtracted from every feature first; ``None`` subtracts nothing.

    Raises:
        ValueError: ``inverse_penalty`` is not above 0.

    Example:
        >>> LogisticHead().write(torch.eye(2), ["cat", "dog"]).predict(torch.tensor([1.0, 3.0]))
        'dog'
    """

    @accepts_old_base_words
    def __init__(self, inverse_penalty: float = 1.0, *, base: BaseStatistics | None = None) -> None:
        super().__init__(base)
        if not 0 < inverse_penalty < math.inf:
            raise ValueError(f"LogisticHead: inverse_penalty must be above 0, got {inverse_penalty}")
        self.inverse_penalty = inverse_penalty

    def _learn(self, support: Support) -> tuple[Tensor, Tensor]:
        """Return weights ``(E, C, D)`` and intercepts ``(E, C)``."""
        from sklearn.linear_model import LogisticRegression

        all_features = support.with_base(unit(support.base), unit(support.features))
        if support.columns < 2:  # nothing to tell apart: the penalised loss is least at zeros; scikit-learn refuses
            nothing = all_features.new_zeros(len(all_features), 1, all_features.shape[-1])
            return nothing, nothing[..., 0]
        targets = (
            torch.cat([torch.arange(len(support.base), device=all_features.device), support.targets]).cpu().numpy()
        )
        weights, intercepts = [], []
        for features in all_features.detach().cpu().numpy():
            model = LogisticRegression(C=self.inverse_penalty, max_iter=1000)
            with warnings.catch_warnings():  # one feature a class is usual here
                warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")
                model.fit(features, targets)
            coefficients, offsets = model.coef_, model.intercept_
            if support.columns == 2:  # scikit-learn gives the second class's logit alone
                coefficients = np.concatenate([-coefficients, coefficients]) / 2
                offsets = np.concatenate([-offsets, offsets]) / 2
            weights.append(coefficients)
            intercepts.append(offsets)
        return torch.from_numpy(np.stack(weights)).to(all_features), torch.from_numpy(np.stack(intercepts)).to(
            all_features
        )

    def _score(self, learned: tuple[Tensor, Tensor], query: Tensor) -> Tensor:
        """Return logits ``(E, Q, C)``."""
        weights, intercepts = learned
        return unit(query) @ weights.mT + intercepts.unsqueeze(-2)

    def extra_repr(self) -> str:
        """Return how strong the penalty is."""
        return f"inverse_penalty={self.inverse_penalty}, {super().extra_repr()}"
