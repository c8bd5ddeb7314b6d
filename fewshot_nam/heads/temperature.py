"""The temperature that turns scores into probabilities.

Source: Guo et al., "On Calibration of Modern Neural Networks" (2017), section 4.2.
"""

from __future__ import annotations

import math

from torch import Tensor

_REACH = math.log(1e6)
_CLOSE = 1e-10  # relative


def fit_temperature(scores: Tensor, targets: Tensor, doubts: float = 0.0) -> float:
    """Return the ``T`` that makes ``softmax(scores / T)`` most likely.

    Args:
        scores: ``(n, C)``, finite, of any scale.
        targets: ``(n,)`` long, the column of each one's class.
        doubts: how many more rows, each as likely of any class as of any other, are taken to have been seen: with some, the
            probabilities stay below 1 where every row is right.

    Returns:
        ``T``, within a factor of a million of the mean gap between a score and the largest of its row. Where no ``T`` is best
        it is at that limit: small if every row is right, large if scores are no better than chance. 1 if all scores are equal.
    """
    gaps = scores.detach().double()
    gaps = gaps - gaps.amax(dim=-1, keepdim=True)
    scale = -float(gaps.mean())
    if scale == 0:
        return 1.0
    gaps = gaps / scale
    true = float(gaps.gather(1, targets.unsqueeze(1)).mean())
    true = (len(gaps) * true + doubts * float(gaps.mean())) / (len(gaps) + doubts)
    # The loss is convex in 1 / T: find where its slope, mean gap expected minus mean gap of the true class, crosses 0. Newton's
    # steps in log 1 / T, and the middle of the range that is left where a step would leave it.
    gaps = gaps.T.contiguous()  # class by class: what runs over the few classes is then done for many rows at a time
    low, high, here, steps = -_REACH, _REACH, 0.0, 0
    while high - low > _CLOSE:
        steps += 1
        weights = (gaps * math.exp(here)).exp_()
        weights /= weights.sum(dim=0)
        means = (weights * gaps).sum(dim=0)
        slope = float(means.mean()) - true
        rise = math.exp(here) * float(((weights * gaps * gaps).sum(dim=0) - means * means).mean())
        low, high = (here, high) if slope <= 0 else (low, here)
        step = -slope / rise if rise > 0 else math.inf
        if abs(step) < _CLOSE:
            break
        # Where the slope fades away Newton's steps are short: every third halves the range.
        here = here + step if steps % 3 and low < here + step < high else (low + high) / 2
    return scale * math.exp(-here)
