"""The temperature that turns scores into probabilities.

Source: Guo et al., "On Calibration of Modern Neural Networks" (2017), section 4.2.
"""

from __future__ import annotations

import math

from torch import Tensor

_LIMIT = math.log(1e6)
_CLOSE = 1e-10  # relative


def fit_temperature(scores: Tensor, targets: Tensor, pseudo_count: float = 0.0) -> float:
    """Return the ``T`` that makes ``softmax(scores / T)`` most likely.

    Args:
        scores: ``(n, C)``, finite, of any scale.
        targets: ``(n,)`` long, the column of each sample's class.
        pseudo_count: how many samples to add whose class is uniform; at least 0. A positive count keeps probabilities below 1
            even if every sample is right.

    Returns:
        ``T``, within a factor of a million of the mean gap between a score and the largest of its row. If the likelihood has no
        maximum, ``T`` is one end of that range: the low end if every sample is right, the high end if scores are no better than
        chance. 1 if all scores are equal.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
        >>> temperature = fit_temperature(scores, torch.tensor([0, 0, 0, 1]))  # 3 of 4 are right
        >>> round(torch.softmax(scores[0] / temperature, dim=0)[0].item(), 3)
        0.75
    """
    gaps = scores.detach().double()
    gaps = gaps - gaps.amax(dim=-1, keepdim=True)
    scale = -float(gaps.mean())
    if scale == 0:
        return 1.0
    gaps = gaps / scale
    true_gap = float(gaps.gather(1, targets.unsqueeze(1)).mean())
    true_gap = (len(gaps) * true_gap + pseudo_count * float(gaps.mean())) / (len(gaps) + pseudo_count)
    # The loss is convex in 1 / T: find where its slope, the expected mean gap minus the mean gap of the true class, crosses 0.
    # Newton's method in log 1 / T; a step outside the bracket is replaced by bisection.
    gaps = gaps.T.contiguous()  # class by class: sums over the few classes are then taken for many samples at a time
    low, high, log_inverse, steps = -_LIMIT, _LIMIT, 0.0, 0
    while high - low > _CLOSE:
        steps += 1
        weights = (gaps * math.exp(log_inverse)).exp_()
        weights /= weights.sum(dim=0)
        means = (weights * gaps).sum(dim=0)
        slope = float(means.mean()) - true_gap
        rise = math.exp(log_inverse) * float(((weights * gaps * gaps).sum(dim=0) - means * means).mean())
        low, high = (log_inverse, high) if slope <= 0 else (low, log_inverse)
        step = -slope / rise if rise > 0 else math.inf
        if abs(step) < _CLOSE:
            break
        # Newton's steps are short where the slope is small: every third step is a bisection.
        log_inverse = log_inverse + step if steps % 3 and low < log_inverse + step < high else (low + high) / 2
    return scale * math.exp(-log_inverse)
