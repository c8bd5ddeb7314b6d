"""The cosine classifier that NAM is measured against: the cosine between a query and each class prototype.

Sources: Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting" (2018), section 3.1 (cosine, learned
scale); Wang et al., "SimpleShot" (2019), section 3.2 (CL2N: centred by the mean base feature, then unit length); ``root``:
``fewshot_nam.heads.power_norm``; Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples"
(2017): acceptance by the largest softmax probability, which ``compete=1`` is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fewshot_nam.heads.base import Head, Support, compete
from fewshot_nam.heads.base_statistics import BaseStatistics, accepts_old_base_words
from fewshot_nam.heads.power_norm import Transform, signed_root
from fewshot_nam.memory.primitives import unit


class CosineHead(Head, gather_free=True):
    """Scores ``scale * cos(x, prototype)``, a prototype being the mean of its class's unit features.

    Args:
        scale: what cosines are multiplied by; it changes probabilities, never ranks.
        learn_scale: make ``scale`` a parameter to be trained.
        compete: share of the softmax normaliser that is taken off the scores, as in ``NAMHead``; 0 is a plain cosine classifier,
            1 gives log-probabilities times the temperature.
        temperature: of that softmax, above 0, on the scale of the scores.
        root: take the signed square root of every feature before anything else.
        base: what is known of base classes; ``None`` for nothing. Its mean is subtracted from every feature first: this is
            SimpleShot's CL2N. With ``root``, the mean over its power means, roots taken, is subtracted after the root; a base
            with only a mean is taken to have the mean of the roots.

    Raises:
        ValueError: a number outside its range.
    """

    scale: Tensor

    @accepts_old_base_words
    def __init__(
        self,
        scale: float = 1.0,
        *,
        learn_scale: bool = False,
        compete: float = 0.0,
        temperature: float = 0.1,
        root: bool = False,
        base: BaseStatistics | None = None,
    ) -> None:
        if root and base is not None and len(base):
            base = BaseStatistics.from_mean(signed_root(base.power_means).mean(dim=0))
        super().__init__(base)
        if not 0 < scale < math.inf:
            raise ValueError(f"CosineHead: scale must be above 0, got {scale}")
        if not 0 <= compete <= 1:
            raise ValueError(f"CosineHead: compete must be from 0 to 1, got {compete}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"CosineHead: temperature must be above 0, got {temperature}")
        self.compete, self.temperature, self.root = compete, temperature, root
        value = torch.tensor(float(scale))
        if learn_scale:
            self.scale = nn.Parameter(value)
        else:
            self.register_buffer("scale", value)

    @property
    def rooted(self) -> bool:
        """Whether features are rooted, and base prototypes had better be power means."""
        return self.root

    @property
    def _transform(self) -> Transform:
        return Transform(self.root, self.mean if self.mean.numel() else None)

    def _learn(self, support: Support) -> Tensor:
        """Return the unit prototypes ``(E, C, D)``."""
        return support.with_base(unit(support.base), unit(support.class_means(unit(support.features))))

    def _class_weights(self, learned: Tensor) -> Tensor:
        return learned

    def _scores_from(self, learned: Tensor, products: Tensor, lengths: Tensor) -> Tensor:
        """Return scaled cosines ``(E, Q, C)``."""
        lengths = lengths.clamp_min(torch.finfo(lengths.dtype).tiny)
        return compete(self.scale.to(products) * products / lengths, self.compete, self.temperature)

    def extra_repr(self) -> str:
        """Say how scores are scaled, whether classes compete and whether features are rooted."""
        competing = f"compete={self.compete}, temperature={self.temperature}, root={self.root}"
        return f"scale={float(self.scale.detach())}, {competing}, {super().extra_repr()}"
