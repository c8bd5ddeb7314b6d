"""The threshold that strangers pass with at most a given probability, whatever their distribution.

Let the calibration strangers come in ``K`` groups, group ``k`` with ``m_k`` scores, and let a new stranger with score ``s`` be
of a new group. Its p-value gives every group one vote, and the new stranger's own group one that is lost:

    p(s) = (1 + sum_k #{i : s_ki >= s} / m_k) / (K + 1)

It is accepted where ``p(s) <= target``, which is where ``s`` is above one of the calibration scores.

Guarantee: P(accept) <= target, if the groups are exchangeable, and so are the scores within each. Proof: imagine the whole group
that the new stranger is from, and let F(s) be the mean over all ``K + 1`` groups of the share of scores at or above ``s``. Then
F(s) <= p(s), as the share within one group is at most 1. Given all scores but not which is which, the new stranger is a group
picked evenly and then a score picked evenly within it; F is exactly the chance that such a pick is at or above ``s``, so that
P(F(s) <= target) <= target, with ties or without. P(p(s) <= target) is no larger.

Where every stranger is a group of its own (``m`` strangers, exchangeable one by one), this is split conformal prediction: accept
above the ``j``-th largest, ``j = floor(target (m + 1))``, with P(accept) <= j / (m + 1); without ties it is exactly that.

The probability is over calibration strangers and new stranger together: the rate at one calibration may come out above or
below. Without groups it has a standard deviation of about sqrt(target (1 - target) / m), with groups a larger one.

Sources: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World" (2005), section 4.1 (split conformal p-values); Dunn,
Wasserman and Ramdas, "Distribution-Free Prediction Sets for Two-Layer Hierarchical Models" (2022); Lee, Barber and Willett,
"Distribution-free inference with hierarchical data" (2023), whose method the grouped form is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_ROUNDING = 1e-9  # relative: floats can put target (m + 1) a hair below the whole number that is meant


class ConformalThreshold(NamedTuple):
    """Accept a score at or above ``threshold``: a stranger passes with probability ``bound`` at most, ``bound <= target``.

    Attributes:
        threshold: the smallest float above one of the calibration scores.
        bound: ``floor(target (m + 1)) / (m + 1)`` without groups, the target with groups.
        groups: how many the guarantee rests on: strangers, or their groups.
    """

    threshold: float
    bound: float
    groups: int


def conformal_threshold(scores: Tensor, target: float, groups: Tensor | None = None) -> ConformalThreshold:
    """Return the lowest threshold with a guarantee on how many strangers pass it.

    Args:
        scores: ``(m,)``, acceptance scores of strangers.
        target: largest probability that a new stranger is accepted, between 0 and 1.
        groups: ``(m,)`` ints, the group of each stranger, such as its class: strangers of *new* groups are then meant.
            ``None``: every stranger for itself.

    Raises:
        ValueError: a target outside (0, 1), scores that are not a vector of finite numbers, not as many groups as scores, or
            too few strangers or groups: there must be ``ceil(1 / target) - 1``.
    """
    if not 0 < target < 1:
        raise ValueError(f"target_fpr must be above 0 and below 1, got {target}")
    if scores.dim() != 1 or not bool(scores.isfinite().all()):
        raise ValueError(f"scores of strangers must be finite and (m,), got shape {tuple(scores.shape)}")
    if groups is not None and groups.shape != scores.shape:
        raise ValueError(f"groups must be as many as scores: {tuple(scores.shape)} and {tuple(groups.shape)}")
    values, order = scores.detach().double().sort(descending=True)
    if groups is None:
        count, votes = len(values), torch.ones_like(values)
    else:
        _, member, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
        count, votes = len(sizes), sizes.double().reciprocal()[member[order]]
    allowed = target * (count + 1) * (1 + _ROUNDING)
    if allowed < 1:
        needed = math.ceil((1 - _ROUNDING) / target) - 1
        kind = "strangers" if groups is None else "classes of strangers"
        raise ValueError(
            f"a bound of {target:g} on false alarms needs at least {needed} {kind}, got {count}: "
            "give more of them, or ask for a larger target_fpr"
        )
    # The largest score whose p-value is too large; where votes become too many among ties, it is their value all the same.
    beyond = min(int((1 + votes.cumsum(0) <= allowed).sum()), len(values) - 1)
    bound = target if groups is not None else min(math.floor(allowed) / (count + 1), target)
    return ConformalThreshold(math.nextafter(float(values[beyond]), math.inf), bound, count)
