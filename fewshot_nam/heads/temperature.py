"""The temperature that turns scores into probabilities.

Source: Guo et al., "On Calibration of Modern Neural Networks" (2017), section 4.2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_REACH = math.log(1e6)
_HALVINGS = 36  # to a relative 1e-9


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
    # The loss is convex in 1 / T: halve the range that its slope, mean gap expected minus mean gap of the true class, crosses 0 in.
    low, high = -_REACH, _REACH
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        expected = float((torch.softmax(gaps * math.exp(middle), dim=-1) * gaps).sum(dim=-1).mean())
        low, high = (middle, high) if expected <= true else (low, middle)
    return scale * math.exp(-(low + high) / 2)
