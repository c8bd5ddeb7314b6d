"""Base-class attention: a novel prototype is completed by the prototypes of the base classes that are like it.

A novel class is known from a few images and a base class from many, so its prototype is noisier, and queries lie farther from it.
Two things make up for that: attention over base prototypes, as in the weight generator of Gidaris and Komodakis, "Dynamic Few-Shot
Visual Learning without Forgetting" (2018), section 3.2, here without training; and a length of novel prototypes above 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_nam.memory.primitives import unit

CENTRING = 0.7
"""Share of the mean base prototype that is subtracted from features before they are compared."""

ATTENTION_WEIGHT = 0.3
"""Weight of what attention adds to a novel prototype, which itself has weight 1."""

SHARPNESS = 30.0
"""Factor of the cosines in the softmax over base classes."""

NOVEL_SCALE = 1.3
"""Length of a novel prototype; a base prototype has length 1."""


def with_base_attention(means: Tensor, base: Tensor) -> Tensor:
    """Return novel prototypes ``(E, N, D)`` plus what attention over unit base prototypes ``(B, D)`` adds to each."""
    return means + ATTENTION_WEIGHT * torch.softmax(SHARPNESS * (unit(means) @ base.mT), dim=-1) @ base
