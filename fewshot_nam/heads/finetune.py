"""Class weights fine-tuned by gradient descent: on the support alone, or on the predictions for the queries too (TIM).

The weights start as the prototypes of unit features ``z``; the logits are ``T (w_c . z - |w_c|^2 / 2)``, that is
``-T |w_c - z|^2 / 2`` up to a constant. Adam minimises

    a CE(support) + b H(Y | X) - c H(Y),

``H(Y | X)`` being the mean entropy of the queries' predictions and ``H(Y)`` the entropy of their mean.

Sources: Chen et al., "A Closer Look at Few-shot Classification" (2019; the support alone); Dhillon et al., "A Baseline for
Few-Shot Image Classification" (2020; ``b = 1``); Boudiaf et al., "Transductive Information Maximization For Few-Shot Learning"
(TIM, 2020; equations 2 and 3). Departures: the backbone is frozen in all of them here; steps and rate are chosen on validation
classes of Tiny ImageNet (``scripts/compare_methods.py``).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fewshot_nam.heads.base import Head, Support
from fewshot_nam.heads.base_statistics import BaseStatistics
from fewshot_nam.heads.validation import check_steps
from fewshot_nam.memory.primitives import unit

_BETAS = (0.9, 0.999)  # of Adam
_EPSILON = 1e-8


class Learned(NamedTuple):
    """What was learned from the support.

    Attributes:
        weights: ``(E, C, D)``; of a transductive head as they are before the queries are seen.
        features: ``(E, n, D)``, unit features of the support and of base classes in the label space.
        targets: ``(n, C)``, 1 where a feature is of a class and 0 elsewhere.
    """

    weights: Tensor
    features: Tensor
    targets: Tensor


class FinetuneHead(Head):
    """Scores are the logits of fine-tuned class weights. With a weight on either entropy the head is transductive.

    Args:
        steps: of Adam, at least 0.
        rate: its learning rate, above 0.
        temperature: ``T``, above 0; larger makes predictions sharper.
        cross_entropy_weight: ``a``, at least 0.
        conditional_entropy_weight: ``b``, at least 0.
        marginal_entropy_weight: ``c``, at least 0.
        base: its mean is subtracted from every feature first; ``None`` subtracts nothing.

    Raises:
        ValueError: a number outside its range.

    Example:
        >>> FinetuneHead().write(torch.eye(2), ["cat", "dog"]).predict(torch.tensor([1.0, 3.0]))
        'dog'
    """

    def __init__(
        self,
        steps: int = 50,
        rate: float = 1e-3,
        temperature: float = 15.0,
        *,
        cross_entropy_weight: float = 1.0,
        conditional_entropy_weight: float = 0.0,
        marginal_entropy_weight: float = 0.0,
        base: BaseStatistics | None = None,
    ) -> None:
        super().__init__(base)
        check_steps("FinetuneHead", steps)
        for name, value in (("rate", rate), ("temperature", temperature)):
            if not 0 < value < math.inf:
                raise ValueError(f"FinetuneHead: {name} must be above 0, got {value}")
        weights = (cross_entropy_weight, conditional_entropy_weight, marginal_entropy_weight)
        if not all(0 <= weight < math.inf for weight in weights):
            raise ValueError(f"FinetuneHead: the weights of the loss must be at least 0, got {weights}")
        self.steps, self.rate, self.temperature = steps, rate, temperature
        self.cross_entropy_weight, self.conditional_entropy_weight, self.marginal_entropy_weight = weights

    @property
    def transductive(self) -> bool:  # type: ignore[override]
        """Whether the queries take part in the loss."""
        return bool(self.conditional_entropy_weight or self.marginal_entropy_weight)

    def _learn(self, support: Support) -> Learned:
        """Return the weights, fine-tuned unless the queries are needed for it."""
        features = support.with_base(unit(support.base), unit(support.features))
        members = torch.nn.functional.one_hot(support.all_targets(), support.columns).to(features)
        weights = (members / members.sum(dim=0)).mT @ features
        if not self.transductive:
            weights = self._tuned(weights, features, members, features[:, :0])
        return Learned(weights, features, members)

    def _score(self, learned: Learned, query: Tensor) -> Tensor:
        """Return logits ``(E, Q, C)``."""
        query, weights = unit(query), learned.weights
        if self.transductive and query.shape[1]:
            weights = self._tuned(weights, learned.features, learned.targets, query)
        return self._logits(weights, query)

    def _logits(self, weights: Tensor, features: Tensor) -> Tensor:
        return self.temperature * (features @ weights.mT - weights.square().sum(dim=-1).unsqueeze(-2) / 2)

    def _tuned(self, weights: Tensor, features: Tensor, targets: Tensor, query: Tensor) -> Tensor:
        """Return weights ``(E, C, D)`` after the steps; the loss of each episode is its own."""
        rows = torch.cat([features, query], dim=1)
        first, second = torch.zeros_like(weights), torch.zeros_like(weights)
        for step in range(1, self.steps + 1):
            gradient = self._gradient(weights, rows, targets)
            first = _BETAS[0] * first + (1 - _BETAS[0]) * gradient
            second = _BETAS[1] * second + (1 - _BETAS[1]) * gradient.square()
            scale = (second / (1 - _BETAS[1] ** step)).sqrt() + _EPSILON
            weights = weights - self.rate / (1 - _BETAS[0] ** step) * first / scale
        return weights

    def _gradient(self, weights: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        """Return the gradient of the loss with respect to weights ``(E, C, D)``; ``rows`` are the support, then the queries."""
        probabilities = self._logits(weights, rows).softmax(dim=-1)
        of_support, of_query = probabilities[:, : len(targets)], probabilities[:, len(targets) :]
        by_logits = torch.empty_like(probabilities)
        by_logits[:, : len(targets)] = self.cross_entropy_weight * (of_support - targets) / max(len(targets), 1)
        if of_query.shape[1]:
            tiny = torch.finfo(of_query.dtype).tiny
            logs, mean = of_query.clamp_min(tiny).log(), of_query.mean(dim=1, keepdim=True).clamp_min(tiny).log()
            inner = self.marginal_entropy_weight * mean - self.conditional_entropy_weight * logs
            inner = inner - (of_query * inner).sum(dim=-1, keepdim=True)
            by_logits[:, len(targets) :] = of_query * inner / of_query.shape[1]
        return self.temperature * (by_logits.mT @ rows - by_logits.sum(dim=1).unsqueeze(-1) * weights)

    def extra_repr(self) -> str:
        """Return the settings."""
        loss = f"{self.cross_entropy_weight}, {self.conditional_entropy_weight}, {self.marginal_entropy_weight}"
        return f"steps={self.steps}, rate={self.rate}, temperature={self.temperature}, loss=({loss}), {super().extra_repr()}"
