"""The space that base classes define: features power-normalised, centred, whitened within classes, of length 1.

For a feature ``x``, ``z(x) = unit(A unit(sqrt(x) - c))`` with ``A = W^(-1/2) (I + B)^p``. ``sqrt`` keeps the sign; ``c`` is the
mean of the power-normalised base prototypes; ``W`` is the covariance of images about their class means and ``B`` that of the
base prototypes after ``W^(-1/2)``, each divided by its mean eigenvalue. Whitening by ``W`` is linear discriminant analysis; the
power of ``I + B`` gives more weight to directions in which classes differ.

Sources: Fisher, "The use of multiple measurements in taxonomic problems" (1936); Friedman, "Regularized Discriminant Analysis"
(1989; the shrunk ``W``); Hatch and Stolcke, "Generalized linear kernels for one-versus-all classification" (2006; within-class
covariance normalisation before cosine scores). The cohort score is the adaptive s-norm of Matejka et al., "Analysis of Score
Normalization in Multilingual Speaker Recognition" (2017), with a soft maximum in place of the nearest few.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fewshot_nam.heads.base_statistics import BaseStatistics
from fewshot_nam.heads.power_norm import power_normalise
from fewshot_nam.memory.primitives import unit

_SAME = (
    0.9  # cosine from which on a direction is that of its nearest base class: a mean feature is not quite a power mean
)


class BaseSpace(NamedTuple):
    """What follows from base classes. Tensors are of one dtype and device.

    Attributes:
        centre: ``(D,)``, subtracted from power-normalised features.
        metric: ``(D, D)``, ``A``, applied to rows from the right; ``None`` for the identity.
        prototypes: ``(B, D)``, the base classes in the space, of length 1: the cohort.
        likeness: expected cosine of two images of one base class; ``None`` where images of base classes are not known.
    """

    centre: Tensor
    metric: Tensor | None
    prototypes: Tensor
    likeness: float | None

    def embed(self, features: Tensor) -> Tensor:
        """Return ``z`` of features ``(..., D)``, in the dtype of the space."""
        directions = power_normalise(features.to(self.centre)) - self.centre
        return unit(directions if self.metric is None else directions @ self.metric)

    def cohort_scores(self, directions: Tensor, temperature: float) -> Tensor:
        """Return ``t log mean_b exp(u . z_b / t)`` of directions ``u`` ``(..., D)`` of the space: how like base classes each is."""
        cosines = directions @ self.prototypes.mT
        return temperature * (torch.logsumexp(cosines / temperature, dim=-1) - math.log(len(self.prototypes)))

    def cohort_scores_among_others(self, directions: Tensor, temperature: float) -> Tensor:
        """Return ``cohort_scores`` of base classes ``(..., D)``, each without the nearest of the cohort, which is itself.

        A direction whose nearest cosine is below 0.9 is no class of the cohort, and none is left out.
        """
        cosines = directions @ self.prototypes.mT
        nearest, own = cosines.max(dim=-1, keepdim=True)
        left_out = torch.zeros_like(cosines, dtype=torch.bool).scatter_(-1, own, nearest >= _SAME)
        total = torch.logsumexp((cosines / temperature).masked_fill(left_out, -torch.inf), dim=-1)
        count = (~left_out).sum(dim=-1).to(cosines)  # the logarithm of an integer has the default dtype
        return torch.where(count > 0, temperature * (total - count.clamp_min(1).log()), 0.0)

    def to(self, like: Tensor) -> BaseSpace:
        """Return the space in the dtype and on the device of a tensor."""
        metric = None if self.metric is None else self.metric.to(like)
        return BaseSpace(self.centre.to(like), metric, self.prototypes.to(like), self.likeness)


def base_space(
    base: BaseStatistics, identity_share: float, between_power: float, centre_share: float = 1.0
) -> BaseSpace:
    """Return the space of base classes, in float64.

    Where images of base classes are not known (``within_covariance`` is ``None``), the metric is the identity: weighting by ``B``
    alone cost up to one point of accuracy on validation classes.

    Args:
        base: at least one class.
        identity_share: of ``W``, from 0 to 1; 1 does not whiten.
        between_power: the power ``p``, at least 0.
        centre_share: share of ``c`` that is subtracted.
    """
    roots = power_normalise(base.power_means.double())
    centre = centre_share * roots.mean(dim=0)
    directions = unit(roots - centre)
    if base.within_covariance is None:
        return BaseSpace(centre, None, directions, None)
    within = base.within_covariance.double()
    metric = _whitening(within, identity_share)
    metric = metric @ _emphasis(unit(directions @ metric), between_power)
    # The second moment of z is divided into what lies within classes and between them.
    inside = float((metric.mT @ within @ metric).trace())
    between = float((1 - within.trace()) * (directions @ metric).square().sum(dim=-1).mean())
    between = max(between, 0.0)  # the estimate of few images may be negative: they are then no more alike than any two
    likeness = between / (between + inside) if between + inside else 0.0
    return BaseSpace(centre, metric, unit(directions @ metric), likeness)


def _whitening(within: Tensor, identity_share: float) -> Tensor:
    """Return ``W^(-1/2)`` of the shrunk covariance ``(D, D)``; the identity where nothing varies."""
    values, axes = torch.linalg.eigh(within)
    values = values.clamp_min(0)
    if not float(values.sum()):
        return torch.eye(len(within)).to(within)
    shrunk = (1 - identity_share) * values / values.mean() + identity_share
    return (axes * shrunk.rsqrt()) @ axes.mT


def _emphasis(directions: Tensor, power: float) -> Tensor:
    """Return ``(I + B)^power`` for whitened base prototypes ``(B, D)``."""
    identity = torch.eye(directions.shape[1]).to(directions)
    _, lengths, axes = torch.linalg.svd(directions - directions.mean(dim=0), full_matrices=False)
    variances = lengths.square()
    if not power or not float(variances.sum()) > 1e-12:
        return identity
    variances = variances * (directions.shape[1] / variances.sum())
    return identity + (axes.mT * ((1 + variances) ** power - 1)) @ axes
