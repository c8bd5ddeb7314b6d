"""The signed square root of features, which evens out a few large ones.

Sources: Perronnin et al., "Improving the Fisher Kernel for Large-Scale Image Classification" (2010; power normalisation);
Arandjelovic and Zisserman, "Three things everyone should know to improve object retrieval" (2012): comparing the square roots of
features that are not negative is comparing them by Hellinger's kernel.
"""

from __future__ import annotations

from torch import Tensor

_LINEAR_BELOW = 1e-8  # the square root has no slope at 0, where many features of a ReLU network are


def signed_root(features: Tensor) -> Tensor:
    """Return ``sign(x) sqrt(|x|)`` of features of any shape, in float32 at least.

    Below ``1e-8`` it is a straight line, so that gradients are finite at 0.
    """
    features = features if features.element_size() >= 4 else features.float()
    return features * features.abs().clamp_min(_LINEAR_BELOW).rsqrt()
