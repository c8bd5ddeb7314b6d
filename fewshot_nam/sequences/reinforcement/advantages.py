"""Generalised advantage estimates.

Source: Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation" (2016).
"""

from __future__ import annotations

import torch
from torch import Tensor


def advantages(
    rewards: Tensor, values: Tensor, ends: Tensor, last_values: Tensor, discount: float, trace: float
) -> Tensor:
    """Return by how much each step was better than the critic expected, ``(T, B)``.

    Args:
        rewards: ``(T, B)``, for the step.
        values: ``(T, B)``, what the critic expected before it.
        ends: ``(T, B)`` bool, where the step ended an episode: nothing behind it counts.
        last_values: ``(B,)``, what the critic expects after the last step.
        discount: gamma.
        trace: lambda: 0 looks one step ahead, 1 to the end of the episode or of the rollout.

    >>> one = torch.ones(2, 1)
    >>> ends = torch.tensor([[False], [True]])
    >>> advantages(one, torch.zeros(2, 1), ends, torch.ones(1), discount=0.5, trace=1.0)
    tensor([[1.5000],
            [1.0000]])
    """
    found = torch.empty_like(rewards)
    later, expected = torch.zeros_like(last_values), last_values
    for step in range(len(rewards) - 1, -1, -1):
        goes_on = (~ends[step]).to(rewards.dtype)
        surprise = rewards[step] + discount * expected * goes_on - values[step]
        later = surprise + discount * trace * later * goes_on
        found[step], expected = later, values[step]
    return found
