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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewshot_nam._deprecation import renamed_attribute, renamed_parameter
from fewshot_nam.heads.base import Head, Support
from fewshot_nam.heads.base_statistics import BaseStatistics, accepts_old_base_words
from fewshot_nam.heads.power_norm import power_normalise
from fewshot_nam.memory.primitives import unit


class Ratios(NamedTuple):
    """Log-likelihood ratios of classes as functions of a query.

    Attributes:
        linear: ``(E, C, D)``, multiplied with the query's coordinates.
        constant: ``(E, C)``.
        square: ``(C, r + 1)``, multiplied with the squared coordinates along the axes and off them.
    """

    linear: Tensor
    constant: Tensor
    square: Tensor


class TwoCovarianceModel(NamedTuple):
    """The model: means of classes are ``N(m0, B)``, images are ``N(m, W)`` with isotropic ``W``.

    Attributes:
        centre: ``(D,)``, ``m0``.
        axes: ``(r, D)``, the directions in which base classes differ.
        between: ``(r + 1,)``, the variances ``B`` along the axes, and last that in every direction off them.
        within: the variance ``W``.
        power_norm: whether features are power-normalised first.
    """

    centre: Tensor
    axes: Tensor
    between: Tensor
    within: float
    power_norm: bool = True

    @classmethod
    def of(cls, base: BaseStatistics, within: float, shrinkage: float, power_norm: bool = True) -> TwoCovarianceModel:
        """Return the model of base classes.

        Args:
            base: at least two classes.
            within: ``W``, as a multiple of the mean eigenvalue of ``B``.
            shrinkage: share of ``B`` that is replaced by the identity times its mean eigenvalue, above 0.
            power_norm: power-normalise every feature first.

        Raises:
            ValueError: base classes that are all alike.
        """
        directions = _directions(base.power_means, power_norm)
        centre = directions.mean(dim=0)
        # In float64: rounding must not give base classes a small variance in a direction in which they have none.
        _, lengths, axes = torch.linalg.svd((directions - centre).double(), full_matrices=False)
        variances = lengths.square() / (len(directions) - 1)
        average = float(variances.sum()) / directions.shape[1]
        if average <= 1e-12:
            raise ValueError("base: its classes all have the same direction, so nothing tells classes apart")
        shared = variances.new_tensor([shrinkage * average])
        between = torch.cat([variances * (1 - shrinkage) + shared, shared])
        return cls(centre, axes.to(directions).contiguous(), between.to(directions), average * within, power_norm)

    def to(self, like: Tensor) -> TwoCovarianceModel:
        """Return the model in the dtype and on the device of a tensor."""
        return self._replace(centre=self.centre.to(like), axes=self.axes.to(like), between=self.between.to(like))

    def coordinates(self, features: Tensor) -> Tensor:
        """Return directions of features ``(..., D)``, relative to the centre."""
        return _directions(features, self.power_norm) - self.centre.to(features)

    def squares(self, coordinates: Tensor) -> Tensor:
        """Return the squared coordinates of ``(..., D)`` along the axes, and their sum off the axes, ``(..., r + 1)``."""
        along = (coordinates @ self.axes.to(coordinates).mT).square()
        total = coordinates.square().sum(dim=-1, keepdim=True)
        return torch.cat([along, total - along.sum(dim=-1, keepdim=True)], dim=-1)

    def ratios(self, means: Tensor, shots: Tensor) -> Ratios:
        """Return the log-ratios of classes with mean coordinates ``(E, C, D)`` and ``(C,)`` shots, which may be infinite."""
        axes, between = self.axes.to(means), self.between.to(means)
        shots = shots.to(means).unsqueeze(-1)
        # p(x | shots) is N(known * mean of the shots, inside), p(x) is N(0, outside): all of them diagonal along the axes.
        known = between / (between + self.within / shots)
        inside, outside = self.within + known * self.within / shots, self.within + between
        weights = known / inside
        linear = weights[:, -1:] * means + ((weights[:, :-1] - weights[:, -1:]) * (means @ axes.mT)) @ axes
        directions = torch.ones_like(between)  # how many share each variance
        directions[-1] = axes.shape[1] - len(axes)
        constant = (self.squares(means) * known * weights + directions * (inside / outside).log()).sum(dim=-1) / -2
        return Ratios(linear, constant, (1 / outside - 1 / inside) / 2)


def _directions(features: Tensor, power_norm: bool) -> Tensor:
    return unit(power_normalise(features) if power_norm else features)


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
        model = TwoCovarianceModel.of(base, within, shrinkage, power_norm)
        self.register_buffer("centre", model.centre)
        self.register_buffer("axes", model.axes)
        self.register_buffer("between", model.between)

    root = renamed_attribute("root", "power_norm")

    @property
    def feature_dim(self) -> int:
        """Width of the features."""
        return len(self.centre)

    @property
    def model(self) -> TwoCovarianceModel:
        """The model that base classes gave."""
        within = float(self.between[-1]) * self.within / self.shrinkage
        return TwoCovarianceModel(self.centre, self.axes, self.between, within, self.power_norm)

    def _coordinates(self, features: Tensor) -> Tensor:
        if features.shape[-1] != self.feature_dim:
            raise ValueError(
                f"features must have width {self.feature_dim} as the base classes, got {features.shape[-1]}"
            )
        return self.model.coordinates(features)

    def _learn(self, support: Support) -> Any:
        """Return what the log-ratio is made of."""
        means = support.with_base(
            self._coordinates(support.base), support.class_means(self._coordinates(support.features))
        )
        shots = support.one_hot().sum(dim=0)
        shots[: len(support.base)] = torch.inf
        return self.model.ratios(means, shots)

    def _score(self, learned: Any, query: Tensor) -> Tensor:
        """Return log-ratios ``(E, Q, C)``, in nats a dimension."""
        return self._evaluated(learned, self._coordinates(query))

    def _evaluated(self, ratios: Ratios, coordinates: Tensor) -> Tensor:
        """Return log-ratios ``(E, Q, C)``, in nats a dimension, of queries with coordinates ``(E, Q, D)``."""
        linear, constant, square = ratios
        products = coordinates @ linear.mT + constant.unsqueeze(-2) + self.model.squares(coordinates) @ square.mT
        return products / self.feature_dim

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"within={self.within}, shrinkage={self.shrinkage}, power_norm={self.power_norm}, {super().extra_repr()}"
