"""The signed square root of features, which evens out a few large ones.

Sources: Perronnin et al., "Improving the Fisher Kernel for Large-Scale Image Classification" (2010; power normalisation);
Arandjelovic and Zisserman, "Three things everyone should know to improve object retrieval" (2012): comparing the square roots of
features that are not negative is comparing them by Hellinger's kernel.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

_LINEAR_BELOW = 1e-8  # the square root has no slope at 0, where many features of a ReLU network are


def signed_root(features: Tensor) -> Tensor:
    """Return ``sign(x) sqrt(|x|)`` of features of any shape, in float32 at least.

    Below ``1e-8`` it is a straight line, so that gradients are finite at 0.
    """
    features = features if features.element_size() >= 4 else features.float()
    return features * features.abs().clamp_min(_LINEAR_BELOW).rsqrt()


class Transform(NamedTuple):
    """What is done to each feature by itself: the signed square root, then a centre is subtracted.

    Attributes:
        power: whether the signed square root is taken.
        centre: ``(D,)``; ``None`` for none.
    """

    power: bool = False
    centre: Tensor | None = None

    def __call__(self, features: Tensor) -> Tensor:
        """Return transformed features, in the shape of ``features`` ``(..., D)`` and in float32 at least."""
        features = features if features.element_size() >= 4 else features.float()
        features = signed_root(features) if self.power else features
        return features if self.centre is None else features - self.centre.to(features)
