"""Probabilistic linear discriminant analysis: how much likelier a query is of a class than of any class at all.

Sources: Ioffe, "Probabilistic Linear Discriminant Analysis" (2006; the two-covariance model and its likelihood ratio); Ren et al.,
"A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection" (2021; the relative Mahalanobis distance: for class means
that are known exactly, this is minus half of it, plus a constant); Friedman, "Regularized Discriminant Analysis" (1989; a
covariance shrunk towards a multiple of the identity).

The model: a class has a mean ``m ~ N(m0, B)``, its images are ``x ~ N(m, W)``. ``m0`` and ``B`` are mean and shrunk covariance of
the base prototypes. These say nothing about ``W``. To add the scatter of few shots to it cost more than it gained on validation
classes, so ``W`` is isotropic.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewshot_nam._deprecation import renamed_attribute, renamed_parameter
from fewshot_nam.heads.base import Head, Support
from fewshot_nam.heads.base_statistics import BaseStatistics, accepts_old_base_words
from fewshot_nam.heads.power_norm import power_normalise
from fewshot_nam.memory.primitives import unit


class PLDAHead(Head):
    """Scores ``log p(x | the shots of the class) - log p(x)`` over unit features, divided by their width ``D``.

    A base class is one whose mean is known exactly: its prototype.

    Args:
        base: power means of at least two classes that are in no episode.
        within: variance of an image about its class mean, ``W``, as a multiple of the mean eigenvalue of ``B``; above 0.
        shrinkage: share of ``B`` that is replaced by the identity times its mean eigenvalue, above 0 and at most 1.
        power_norm: power-normalise every feature before anything else (the signed square root).

    Raises:
        ValueError: fewer than two base classes, or base classes that are all alike, a number outside its range.
    """

    centre: Tensor
    axes: Tensor
    between: Tensor

    @renamed_parameter("root", "power_norm")
    @accepts_old_base_words
    def __init__(
        self,
        base: BaseStatistics | None = None,
        *,
        within: float = 1.0,
        shrinkage: float = 0.3,
        power_norm: bool = True,
    ) -> None:
        super().__init__()
        if not 0 < within < math.inf:
            raise ValueError(f"PLDAHead: within must be above 0, got {within}")
        if not 0 < shrinkage <= 1:
            raise ValueError(f"PLDAHead: shrinkage must be above 0 and at most 1, got {shrinkage}")
        if base is None or len(base) < 2:
            known = 0 if base is None else len(base)
            raise ValueError(f"PLDAHead: needs base, the statistics of at least 2 base classes, got {known}")
        self.within, self.shrinkage, self.power_norm = within, shrinkage, power_norm
        directions = self._directions(base.power_means)
        centre = directions.mean(dim=0)
        # In float64: rounding must not give base classes a small variance in a direction in which they have none.
        _, lengths, axes = torch.linalg.svd((directions - centre).double(), full_matrices=False)
        variances = lengths.square() / (len(directions) - 1)
        average = float(variances.sum()) / directions.shape[1]
        if average <= 1e-12:
            raise ValueError("base: its classes all have the same direction, so nothing tells classes apart")
        shared = variances.new_tensor([shrinkage * average])
        self.register_buffer("centre", centre)
        self.register_buffer("axes", axes.to(directions).contiguous())
        # The last is the variance in every direction off the axes.
        self.register_buffer("between", torch.cat([variances * (1 - shrinkage) + shared, shared]).to(directions))

    root = renamed_attribute("root", "power_norm")

    @property
    def feature_dim(self) -> int:
        """Width of the features."""
        return len(self.centre)

    def _directions(self, features: Tensor) -> Tensor:
        return unit(power_normalise(features) if self.power_norm else features)

    def _coordinates(self, features: Tensor) -> Tensor:
        """Return the model's coordinates: directions of features ``(..., D)``, relative to the centre."""
        if features.shape[-1] != self.feature_dim:
            raise ValueError(
                f"features must have width {self.feature_dim} as the base classes, got {features.shape[-1]}"
            )
        return self._directions(features) - self.centre.to(features)

    def _learn(self, support: Support) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the log-ratio is made of: linear ``(E, C, D)``, constant ``(E, C)`` and square ``(C, r + 1)`` parts."""
        means = support.with_base(
            self._coordinates(support.base), support.class_means(self._coordinates(support.features))
        )
        shots = support.one_hot().sum(dim=0).unsqueeze(-1)
        shots[: len(support.base)] = torch.inf
        axes, between = self.axes.to(means), self.between.to(means)
        spread = between[-1] * (self.within / self.shrinkage)
        # p(x | shots) is N(known * mean of the shots, inside), p(x) is N(0, outside): all of them diagonal along the axes.
        known = between / (between + spread / shots)
        inside, outside = spread + known * spread / shots, spread + between
        weights = known / inside
        linear = weights[:, -1:] * means + ((weights[:, :-1] - weights[:, -1:]) * (means @ axes.mT)) @ axes
        directions = torch.ones_like(between)  # how many share each variance
        directions[-1] = self.feature_dim - len(axes)
        constant = (self._squares(means) * known * weights + directions * (inside / outside).log()).sum(dim=-1) / -2
        return linear, constant, (1 / outside - 1 / inside) / 2

    def _score(self, learned: tuple[Tensor, Tensor, Tensor], query: Tensor) -> Tensor:
        """Return log-ratios ``(E, Q, C)``, in nats a dimension."""
        linear, constant, square = learned
        query = self._coordinates(query)
        ratios = query @ linear.mT + constant.unsqueeze(-2) + self._squares(query) @ square.mT
        return ratios / self.feature_dim

    def _squares(self, coordinates: Tensor) -> Tensor:
        """Return the squared coordinates of ``(..., D)`` along the axes, and their sum off the axes, ``(..., r + 1)``."""
        along = (coordinates @ self.axes.to(coordinates).mT).square()
        total = coordinates.square().sum(dim=-1, keepdim=True)
        return torch.cat([along, total - along.sum(dim=-1, keepdim=True)], dim=-1)

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"within={self.within}, shrinkage={self.shrinkage}, power_norm={self.power_norm}, {super().extra_repr()}"
