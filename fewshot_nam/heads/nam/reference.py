"""The scores of ``NAMHead`` for one query, written as in its equation, one class after another. Slow; tests compare against it."""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_nam.heads.nam.head import NAMSettings
from fewshot_nam.memory.primitives import unit


def power(matrix: Tensor, exponent: float) -> Tensor:
    """Return a power of a symmetric matrix ``(D, D)``."""
    values, axes = torch.linalg.eigh(matrix)
    return axes * values.clamp_min(0) ** exponent @ axes.T


def root(features: Tensor) -> Tensor:
    """Return the square root of features, with their sign."""
    return features.sign() * features.abs().sqrt()


def ratio(shots: Tensor, query: Tensor, base: Tensor, s: NAMSettings) -> Tensor:
    """Return ``(log p(query | shots) - log p(query)) / D`` where class means are ``N(m0, B)`` and images ``N(mean, v I)``."""
    y, D, k = unit(root(base)), len(query), len(shots)
    B, m0 = y.T.cov(), y.mean(0)
    size = B.trace() / D
    B = (1 - s.ratio_shrinkage) * B + s.ratio_shrinkage * size * torch.eye(D).to(B)
    v = s.ratio_within * size * torch.eye(D).to(B)
    known = B @ torch.linalg.inv(B + v / k)  # of the mean of the shots, what is the class's
    x, mean = unit(root(query)), m0 + known @ (unit(root(shots)).mean(0) - m0)
    return (log_density(x - mean, v + known @ v / k) - log_density(x - m0, v + B)) / D


def log_density(x: Tensor, covariance: Tensor) -> Tensor:
    """Return the log-density of ``x`` ``(D,)`` under ``N(0, covariance)``, but for a constant."""
    return -(x @ torch.linalg.inv(covariance) @ x + torch.logdet(covariance)) / 2


def scores(shots: list[Tensor], query: Tensor, base: Tensor, within: Tensor, s: NAMSettings) -> Tensor:
    """Return the scores ``(N,)`` of one query ``(D,)``.

    Args:
        shots: one tensor ``(K, D)`` for each class.
        query: the features of an image.
        base: ``(B, D)``, ``BaseStatistics.power_means``.
        within: ``(D, D)``, ``BaseStatistics.within_covariance``.
        s: the constants.
    """
    eye, c, t, L = torch.eye(len(query)).to(query), root(base).mean(0), s.cohort_temperature, s.norm_exponent
    y = unit(root(base) - c)
    A = power(s.identity_share * eye + (1 - s.identity_share) * within * len(within) / within.trace(), -0.5)
    B = unit(y @ A).T.cov()
    A = A @ power(eye + B * len(B) / B.trace(), s.between_power)
    inside, between = (A.T @ within @ A).trace(), (1 - within.trace()) * (y @ A).square().sum(-1).mean()
    i = between.clamp_min(0) / (between.clamp_min(0) + inside)  # the expected cosine of two images of one base class

    def z(x: Tensor) -> Tensor:
        return unit(unit(root(x) - c) @ A)

    def h(u: Tensor) -> Tensor:
        return t * (unit(y @ A) @ u / t).exp().mean().log()

    spread = torch.cat([z(x) for x in shots])
    R = torch.linalg.inv(s.damping(len(spread)) * eye + spread.T @ spread)
    r = []
    for x in shots:
        m, k = z(x).mean(0), len(x)
        w = R @ unit(m) / (unit(m) @ R @ unit(m))
        e = i * ((1 + (k - 1) * i) / k) ** (-(1 + L) / 2)
        r.append(w @ z(query) / m.norm() ** L + s.ratio_weight * ratio(x, query, base, s) - e)
        r[-1] = r[-1] - s.query_cohort_weight * h(z(query)) - s.class_cohort_weight * h(unit(m))
    reads = torch.stack(r)
    return reads - s.log_partition_penalty * s.temperature * (reads / s.temperature).logsumexp(0)
