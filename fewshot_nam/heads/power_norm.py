"""Power normalisation: the signed square root of features, which evens out a few large ones.

Sources: Perronnin et al., "Improving the Fisher Kernel for Large-Scale Image Classification" (2010; power normalisation);
Arandjelovic and Zisserman, "Three things everyone should know to improve object retrieval" (2012): for features that are not
negative, comparing their square roots is comparing them by the Hellinger kernel.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fewshot_nam._deprecation import renamed_names

_LINEAR_BELOW = 1e-8  # the square root has no finite slope at 0, which many features of a ReLU network are

__getattr__ = renamed_names(__name__, {"signed_root": "power_normalise"})


def power_normalise(features: Tensor) -> Tensor:
    """Return ``sign(x) sqrt(|x|)`` of features of any shape, in float32 at least.

    Below ``1e-8`` it is linear, so that gradients are finite at 0.

    Example:
        >>> import torch
        >>> power_normalise(torch.tensor([4.0, -9.0, 0.0])).tolist()
        [2.0, -3.0, 0.0]
    """
    features = features if features.element_size() >= 4 else features.float()
    return features * features.abs().clamp_min(_LINEAR_BELOW).rsqrt()


class Transform(NamedTuple):
    """What is done to each feature by itself: power normalisation, then a centre is subtracted.

    Attributes:
        power: whether features are power-normalised.
        centre: ``(D,)``; ``None`` for none.
    """

    power: bool = False
    centre: Tensor | None = None

    def __call__(self, features: Tensor) -> Tensor:
        """Return transformed features, in the shape of ``features`` ``(..., D)`` and in float32 at least."""
        features = features if features.element_size() >= 4 else features.float()
        features = power_normalise(features) if self.power else features
        return features if self.centre is None else features - self.centre.to(features)
