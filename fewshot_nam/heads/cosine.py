"""The cosine classifier that NAM is measured against: the cosine between a query and each class prototype.

Sources: Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting" (2018), section 3.1 (cosine, learned
scale); Wang et al., "SimpleShot" (2019), section 3.2 (CL2N: centred by the mean base feature, then unit length); for ``power_norm``
those of ``fewshot_nam.heads.power_norm``; Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution
Examples" (2017): acceptance by the largest softmax probability, which ``log_partition_penalty=1`` is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fewshot_nam._deprecation import renamed_attribute, renamed_parameter
from fewshot_nam.heads.base import Head, Support, with_log_partition_penalty
from fewshot_nam.heads.base_statistics import BaseStatistics, accepts_old_base_words
from fewshot_nam.heads.power_norm import Transform, power_normalise
from fewshot_nam.memory.primitives import unit


class CosineHead(Head, gather_free=True):
    """Scores ``scale * cos(x, prototype)``, a prototype being the mean of its class's unit features.

    Args:
        scale: factor of the cosines, above 0; it changes probabilities, but not the order of scores.
        learn_scale: make ``scale`` a parameter to be trained.
        log_partition_penalty: share of the log of the softmax normaliser that is subtracted from the scores, 0 to 1, as in
            ``NAMHead``; 0 is a plain cosine classifier, 1 gives log-probabilities times the temperature.
        temperature: of that softmax, above 0, on the scale of the scores.
        power_norm: power-normalise every feature before anything else (the signed square root).
        base: what is known of base classes; ``None`` for nothing. Its mean is subtracted from every feature, which is
            SimpleShot's CL2N. With ``power_norm``, the mean of its power-normalised power means is subtracted after power
            normalisation; where only a mean is known, that is taken to be the mean of power-normalised features.

    Raises:
        ValueError: a number outside its range.

    Example:
        >>> head = CosineHead().write(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), ["cat", "dog"])
        >>> head(torch.tensor([3.0, 4.0]))
        tensor([0.6000, 0.8000])
    """

    scale: Tensor

    @renamed_parameter("compete", "log_partition_penalty")
    @renamed_parameter("root", "power_norm")
    @accepts_old_base_words
    def __init__(
        self,
        scale: float = 1.0,
        *,
        learn_scale: bool = False,
        log_partition_penalty: float = 0.0,
        temperature: float = 0.1,
        power_norm: bool = False,
        base: BaseStatistics | None = None,
    ) -> None:
        if power_norm and base is not None and len(base):
            base = BaseStatistics.from_mean(power_normalise(base.power_means).mean(dim=0))
        super().__init__(base)
        if not 0 < scale < math.inf:
            raise ValueError(f"CosineHead: scale must be above 0, got {scale}")
        if not 0 <= log_partition_penalty <= 1:
            raise ValueError(f"CosineHead: log_partition_penalty must be from 0 to 1, got {log_partition_penalty}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"CosineHead: temperature must be above 0, got {temperature}")
        self.log_partition_penalty, self.temperature, self.power_norm = log_partition_penalty, temperature, power_norm
        value = torch.tensor(float(scale))
        if learn_scale:
            self.scale = nn.Parameter(value)
        else:
            self.register_buffer("scale", value)

    compete = renamed_attribute("compete", "log_partition_penalty")
    root = renamed_attribute("root", "power_norm")

    @property
    def power_normalised(self) -> bool:
        """Whether features are power-normalised, so that power means are better base prototypes than means."""
        return self.power_norm

    @property
    def _transform(self) -> Transform:
        return Transform(self.power_norm, self.mean if self.mean.numel() else None)

    def _learn(self, support: Support) -> Tensor:
        """Return the unit prototypes ``(E, C, D)``."""
        return support.with_base(unit(support.base), unit(support.class_means(unit(support.features))))

    def _learn_more(self, learned: Tensor, added: Support) -> Tensor:
        return torch.cat([learned, self._learn(added)], dim=1)

    def _class_weights(self, learned: Tensor) -> Tensor:
        return learned

    def _scores_from(self, learned: Tensor, products: Tensor, lengths: Tensor) -> Tensor:
        """Return scaled cosines ``(E, Q, C)``."""
        lengths = lengths.clamp_min(torch.finfo(lengths.dtype).tiny)
        scores = self.scale.to(products) * products / lengths
        return with_log_partition_penalty(scores, self.log_partition_penalty, self.temperature)

    def extra_repr(self) -> str:
        """Return how scores are scaled and features normalised."""
        penalty = f"log_partition_penalty={self.log_partition_penalty}, temperature={self.temperature}"
        return f"scale={float(self.scale.detach())}, {penalty}, power_norm={self.power_norm}, {super().extra_repr()}"
