"""PT-MAP: queries are transported to classes of equal size, whose centres then move; a transductive head.

Features are power-normalised, scaled to length 1 and centred, support and queries each by their own mean. Then, from the
prototypes ``m``: assignments ``P`` are the entropic optimal transport of queries to classes with ``exp(-l |x - m|^2)``, every query
whole and every class with as many; ``m`` moves by a share of the way to the mean of the features under ``P``; and again.

It assumes that all classes have equally many queries and that there are no others. Where that does not hold, it is no better than
its assumption: unbalanced queries and the open protocol show it.

Source: Hu et al., "Leveraging the Feature Distribution in Transfer-based Few-Shot Learning" (2020), algorithm 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewshot_nam.heads.base import Head, Support
from fewshot_nam.heads.base_statistics import BaseStatistics
from fewshot_nam.heads.bd_cspn import Learned
from fewshot_nam.heads.power_norm import power_normalise
from fewshot_nam.heads.validation import check_steps
from fewshot_nam.memory.primitives import unit

_MOST_SINKHORN = 200  # steps
_CLOSE = 1e-6  # largest change of a sum at which transport has converged


class PTMAPHead(Head):
    """Scores are the logs of the transport plan's shares.

    Args:
        concentration: ``l``, above 0.
        rate: the share of the way that centres move, above 0 and at most 1.
        steps: how often they do, at least 0.
        base: its mean is subtracted from every power-normalised feature first; ``None`` subtracts nothing.

    Raises:
        ValueError: a number outside its range.
    """

    transductive = True

    def __init__(
        self,
        concentration: float = 10.0,
        rate: float = 0.2,
        steps: int = 20,
        *,
        base: BaseStatistics | None = None,
    ) -> None:
        super().__init__(base)
        if not 0 < concentration < math.inf:
            raise ValueError(f"PTMAPHead: concentration must be above 0, got {concentration}")
        if not 0 < rate <= 1:
            raise ValueError(f"PTMAPHead: rate must be above 0 and at most 1, got {rate}")
        check_steps("PTMAPHead", steps)
        self.concentration, self.rate, self.steps = concentration, rate, steps

    def _embed(self, features: Tensor) -> Tensor:
        """Return power-normalised features of length 1, ``(..., D)``."""
        return unit(super()._embed(power_normalise(features)))

    def _learn(self, support: Support) -> Learned:
        """Return centred unit features of the support, and their means."""
        features = support.with_base(support.base, support.features)
        features = _centred(features)
        members = torch.nn.functional.one_hot(support.all_targets(), support.columns).to(features)
        return Learned((members / members.sum(dim=0)).mT @ features, features, members)

    def _score(self, learned: Learned, query: Tensor) -> Tensor:
        """Return logs of shares ``(E, Q, C)``."""
        if not query.shape[1]:
            return query.new_empty(len(query), 0, learned.prototypes.shape[1])
        query, centres = _centred(query), learned.prototypes
        rows, taught = torch.cat([learned.features, query], dim=1), learned.targets.expand(len(query), -1, -1)
        for _ in range(self.steps):
            shares = torch.cat([taught, self._plan(centres, query)], dim=1)
            means = shares.mT @ rows / shares.sum(dim=1).unsqueeze(-1)
            centres = centres + self.rate * (means - centres)
        plan = self._plan(centres, query)
        return plan.clamp_min(torch.finfo(plan.dtype).tiny).log()

    def _plan(self, centres: Tensor, query: Tensor) -> Tensor:
        """Return the plan ``(E, Q, C)``: rows sum to 1, columns to ``Q / C``."""
        squares = query.square().sum(dim=-1, keepdim=True) + centres.square().sum(dim=-1).unsqueeze(-2)
        logs = self.concentration * (2 * query @ centres.mT - squares)
        plan = (logs - logs.amax(dim=-1, keepdim=True)).exp()
        size, tiny = query.shape[1] / centres.shape[1], torch.finfo(plan.dtype).tiny
        plan = plan / plan.sum(dim=-1, keepdim=True)
        for _ in range(_MOST_SINKHORN):
            plan = plan * (size / plan.sum(dim=-2, keepdim=True).clamp_min(tiny))
            sums = plan.sum(dim=-1, keepdim=True)
            plan = plan / sums.clamp_min(tiny)
            if float((sums - 1).abs().amax()) < _CLOSE:
                break
        return plan

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"concentration={self.concentration}, rate={self.rate}, steps={self.steps}, {super().extra_repr()}"


def _centred(features: Tensor) -> Tensor:
    """Return features ``(E, n, D)`` minus their mean, of length 1; where they are all the same, as they were."""
    if features.shape[1] < 2:
        return features
    return unit(features - features.mean(dim=1, keepdim=True))
