"""The threshold that unknowns reach with at most a given probability, whatever their distribution.

An unknown is an image of a class that the head does not know. Let the calibration samples of unknowns come in ``K`` groups,
group ``k`` with ``m_k`` scores, and let a new unknown with score ``s`` be of a new group. Its p-value adds up,
over the groups, the share of scores at or above ``s``; the unknown's own group counts as 1:

    p(s) = (1 + sum_k #{i : s_ki >= s} / m_k) / (K + 1)

The unknown is accepted if ``p(s) <= target``. As ``p`` falls with ``s``, this is a threshold: one of the calibration scores,
which ``s`` must exceed.

Guarantee: P(accept) <= target, if the groups are exchangeable and the scores within each group are too. Proof: add the whole
group of the new unknown, and let F(s) be the mean over all ``K + 1`` groups of the share of scores at or above ``s``. Then
F(s) <= p(s), as the share within one group is at most 1. Fix the ``K + 1`` groups of scores; which of them is the new one is
uniform, and so is which score within it is ``s``. F(s) is the probability that such a draw is at or above ``s``, so
P(F(s) <= target) <= target, with or without ties. As F(s) <= p(s), P(p(s) <= target) <= P(F(s) <= target).

If every sample is a group of its own (``m`` exchangeable samples), this is split conformal prediction: accept above the ``j``-th
largest score, ``j = floor(target (m + 1))``. Then P(accept) <= j / (m + 1), with equality if there are no ties.

This probability is an average over calibrations. For independent samples, the rate of accepted unknowns at one calibration has
the distribution Beta(j, m + 1 - j); with ties, it is stochastically smaller. ``bound_95`` is the 95th percentile of this
distribution. With ``confidence``, the threshold is the lowest at which the rate stays below the target in that share of
calibrations: it uses the largest ``j`` with P(Beta(j, m + 1 - j) <= target) >= confidence.

Sources: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World" (2005), section 4.1 (split conformal p-values); Vovk,
"Conditional Validity of Inductive Conformal Predictors" (2012), proposition 2a (the Beta distribution and the bound with
confidence); Dunn, Wasserman and Ramdas, "Distribution-Free Prediction Sets for Two-Layer Hierarchical Models" (2022); Lee, Barber
and Willett, "Distribution-free inference with hierarchical data" (2023), for the form with groups.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDING = 1e-9  # relative: rounding can put target (m + 1) slightly below a whole number
_CLOSE = 1e-9  # absolute precision of the Beta percentile
SMALLEST_TARGET = 1e-9
"""Of a share of images: anything smaller would take more than a thousand million of them."""


class ConformalThreshold(NamedTuple):
    """Accept a score at or above ``threshold``: an unknown is accepted with probability ``bound`` at most, ``bound <= target``.

    Attributes:
        threshold: the smallest float above one of the calibration scores.
        bound: on the probability that a new unknown is accepted, on average over calibrations: ``j / (m + 1)`` for separate
            samples, the target for groups.
        groups: how many groups of samples the guarantee rests on; without groups, how many samples.
        bound_95: the rate of accepted unknowns stays below this in 95 % of calibrations; ``None`` for groups without
            ``confidence``, where no such number holds for every distribution.
    """

    threshold: float
    bound: float
    groups: int
    bound_95: float | None = None


def conformal_threshold(
    scores: Tensor, target: float, groups: Tensor | None = None, confidence: float | None = None
) -> ConformalThreshold:
    """Return the lowest threshold with a guarantee on how many unknowns reach it.

    Args:
        scores: ``(m,)``, acceptance scores of unknowns.
        target: largest probability that a new unknown is accepted, between 0 and 1.
        groups: ``(m,)`` ints, the group of each sample, such as its class: the guarantee is then for unknowns of *new* groups.
            ``None``: every sample is a group of its own.
        confidence: the share of calibrations, between 0 and 1, in which the rate is to stay below the target; this takes one
            sample of each group, the first. ``None``: the rate is below the target on average over calibrations.

    Raises:
        ValueError: a target or confidence outside (0, 1), a target below ``SMALLEST_TARGET``, scores that are not a vector of
            finite numbers, not as many groups as scores, or too few samples or groups: at least ``1 / target - 1``, or with
            confidence ``log(1 - confidence) / log(1 - target)``, rounded up.
    """
    if not 0 < target < 1:
        raise ValueError(f"target_fpr must be above 0 and below 1, got {target}")
    if target < SMALLEST_TARGET:
        raise ValueError(f"target_fpr must be at least {SMALLEST_TARGET}, got {target}")
    if confidence is not None and not 0 < confidence < 1:
        raise ValueError(f"confidence must be above 0 and below 1, got {confidence}")
    if scores.dim() != 1 or not bool(scores.isfinite().all()):
        raise ValueError(f"scores of unknowns must be finite and (m,), got shape {tuple(scores.shape)}")
    if groups is not None and groups.shape != scores.shape:
        raise ValueError(f"groups must be as many as scores: {tuple(scores.shape)} and {tuple(groups.shape)}")
    kind = "samples of unknowns" if groups is None else "groups of unknowns"
    if confidence is not None:
        return _with_confidence(_first_of_each(scores, groups), target, confidence, kind)
    values, order = scores.detach().double().sort(descending=True)
    if groups is None:
        count, shares = len(values), torch.ones_like(values)
    else:
        _, member, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
        count, shares = len(sizes), sizes.double().reciprocal()[member[order]]
    allowed = target * (count + 1) * (1 + ROUNDING)
    if allowed < 1:
        needed = math.ceil((1 - ROUNDING) / target) - 1
        raise ValueError(_too_few(target, needed, kind, count))
    # The largest score whose p-value is too large. If the limit falls among equal scores, the threshold is just above that score.
    beyond = min(int((1 + shares.cumsum(0) <= allowed).sum()), len(values) - 1)
    threshold = math.nextafter(float(values[beyond]), math.inf)
    if groups is not None:
        return ConformalThreshold(threshold, target, count)
    rank = math.floor(allowed)
    return ConformalThreshold(threshold, min(rank / (count + 1), target), count, beta_percentile(0.95, rank, count))


def _with_confidence(scores: Tensor, target: float, confidence: float, kind: str) -> ConformalThreshold:
    # The largest rank that is confident enough: beta_probability falls with the rank.
    count, rank, beyond = len(scores), 0, len(scores) + 1
    while beyond - rank > 1:
        middle = (rank + beyond) // 2
        rank, beyond = (middle, beyond) if beta_probability(target, middle, count) >= confidence else (rank, middle)
    if not rank:
        needed = math.ceil(math.log1p(-confidence) / math.log1p(-target) * (1 - ROUNDING))
        raise ValueError(_too_few(target, needed, kind, count, f" with confidence {confidence}"))
    value = float(scores.detach().double().sort(descending=True).values[rank - 1])
    return ConformalThreshold(
        math.nextafter(value, math.inf), rank / (count + 1), count, beta_percentile(0.95, rank, count)
    )


def _first_of_each(scores: Tensor, groups: Tensor | None) -> Tensor:
    """Return the first score of each group."""
    if groups is None:
        return scores
    first = {int(group): i for i, group in reversed(list(enumerate(groups.tolist())))}
    return scores[sorted(first.values())]


def _too_few(target: float, needed: int, kind: str, count: int, confidently: str = "") -> str:
    return (
        f"a bound of {target} on false alarms{confidently} needs at least {needed} {kind}, got {count}: "
        "give more of them, or a larger target_fpr"
    )


def beta_probability(rate: float, rank: int, count: int) -> float:
    """Return P(Beta(rank, count + 1 - rank) <= rate), the chance that at least ``rank`` of ``count`` trials succeed.

    Args:
        rate: between 0 and 1.
        rank: 1 to ``count``.
        count: of samples.
    """
    if not 0 < rate < 1:
        return float(rate >= 1)
    log_rate, log_rest = math.log(rate), math.log1p(-rate)
    fewer = 0.0
    for successes in range(rank):
        ways = math.lgamma(count + 1) - math.lgamma(successes + 1) - math.lgamma(count - successes + 1)
        fewer += math.exp(ways + successes * log_rate + (count - successes) * log_rest)
    return max(0.0, 1 - fewer)


@functools.lru_cache(maxsize=1024)  # a head asks for the same number whenever its classes change
def beta_percentile(share: float, rank: int, count: int) -> float:
    """Return the rate below which Beta(rank, count + 1 - rank) lies with probability ``share``, rounded up."""
    low, high = 0.0, 1.0
    while high - low > _CLOSE:
        middle = (low + high) / 2
        low, high = (middle, high) if beta_probability(middle, rank, count) < share else (low, middle)
    return high
