"""Open-set scores of directions and lengths of features: ViM, fDBD and NCI.

Sources: Wang et al., "ViM: Out-Of-Distribution with Virtual-logit Matching" (2022); Liu and Qin, "Fast Decision Boundary based
Out-of-Distribution Detector" (2024); Liu and Qin, "Detecting Out-of-Distribution through the Lens of Neural Collapse" (2025).

They are written for a linear classifier that was trained on many images. Departures, since a head has seen few: the weights of a
class are its prototype, for NCI minus the mean base feature, the direction that a trained classifier comes to under neural
collapse; there are no biases, so the origin of ViM is 0; the mean feature and the principal space are those of base classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fewshot_nam.heads.base import Support
from fewshot_nam.heads.open_scores.open_score import OpenScore

_ROWS = 4096  # features converted to float64 at a time


class ViMScore(OpenScore):
    """``log sum_c exp(s_c / T) - a |R x|``: ``R`` projects on what is orthogonal to the principal space of base images.

    ``a`` is such that ``a |R x|`` is on average as large as the largest logit of base images, in size.

    Args:
        dimensions: of the principal space, at least 1 and below ``D``; ``None`` for the paper's rule: 1,000 from 2,048 features on,
            512 from 768 on, else half.
        temperature: see ``OpenScore``.

    Raises:
        ValueError: a number outside its range.
    """

    needs_base = True
    residual: Tensor
    scale: Tensor

    def __init__(self, dimensions: int | None = None, *, temperature: float | None = None) -> None:
        super().__init__(temperature)
        if dimensions is not None and dimensions < 1:
            raise ValueError(f"ViMScore: dimensions must be at least 1, got {dimensions}")
        self.dimensions = dimensions
        self.register_buffer("residual", torch.empty(0, 0))
        self.register_buffer("scale", torch.tensor(1.0))

    @property
    def fitted(self) -> bool:
        """Whether base classes are known."""
        return bool(self.residual.numel())

    def fit_features(self, features: Tensor) -> None:
        """Find the principal space of features ``(n, D)``."""
        width = features.shape[1]
        rule = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
        kept = rule if self.dimensions is None else self.dimensions
        if not 0 < kept < width:
            raise ValueError(f"ViMScore: dimensions must be from 1 to {width - 1} for {width} features, got {kept}")
        squares = torch.zeros(width, width, dtype=torch.float64)
        for some in torch.split(features, _ROWS):
            rows = some.double().cpu()
            squares += rows.mT @ rows
        _, axes = torch.linalg.eigh(squares / len(features))  # the largest last
        self.residual = axes[:, : width - kept].contiguous().to(features.device, torch.float32)

    def fit_scores(self, scores: Tensor, embedded: Tensor) -> None:
        """Set ``a`` by logits ``(E, Q, C)`` of base images and their lengths outside the space ``(E, Q, 1)``."""
        self.scale = (self._logits(scores).amax(dim=-1).mean() / embedded.mean()).abs().to(self.residual)

    def embed(self, features: Tensor) -> Tensor:
        """Return the length outside the principal space ``(..., 1)``."""
        return torch.linalg.vector_norm(features @ self.residual.to(features), dim=-1, keepdim=True)

    def forward(self, scores: Tensor, learned: Any, embedded: Tensor) -> Tensor:
        """Return the score ``(E, Q)``."""
        return torch.logsumexp(self._logits(scores), dim=-1) - self.scale.to(scores) * embedded[..., 0]

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"dimensions={self.dimensions}"


class _Centred(OpenScore):
    """A score that looks at features minus the mean base feature."""

    needs_base = True
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(0))

    @property
    def fitted(self) -> bool:
        """Whether base classes are known."""
        return bool(self.mean.numel())

    def fit_features(self, features: Tensor) -> None:
        """Find the mean of features ``(n, D)``."""
        self.mean = torch.stack([some.double().sum(dim=0) for some in torch.split(features, _ROWS)]).sum(dim=0)
        self.mean = (self.mean / len(features)).float()

    def embed(self, features: Tensor) -> Tensor:
        """Return centred features ``(..., D)``, their L2 norm and the L1 norm of the features as they were: ``(..., D + 2)``."""
        apart = features - self.mean.to(features)
        lengths = torch.linalg.vector_norm(apart, dim=-1, keepdim=True).clamp_min(1e-12)
        return torch.cat([apart, lengths, features.abs().sum(dim=-1, keepdim=True)], dim=-1)

    def learn(self, support: Support) -> Tensor:
        """Return the class weights ``(E, C, D)``: centred prototypes."""
        return support.with_base(support.base, support.class_means(support.features))[..., :-2]


class FDBDScore(_Centred):
    """``sum_c |s_max - s_c| / |w_max - w_c| / |x - mean|``: the distance to the boundaries of the answer, by scores and weights."""

    uses_scores = False  # a factor of all scores is a factor of the result

    def forward(self, scores: Tensor, learned: Tensor, embedded: Tensor) -> Tensor:
        """Return the score ``(E, Q)``."""
        best, answer = scores.max(dim=-1)
        between = torch.cdist(learned, learned, compute_mode="donot_use_mm_for_euclid_dist")
        same = torch.eye(between.shape[-1], dtype=torch.bool, device=between.device)
        between = between.clamp_min(1e-12).masked_fill(same, 1.0)
        of_answer = between.gather(1, answer.unsqueeze(-1).expand(-1, -1, between.shape[-1]))
        return ((best.unsqueeze(-1) - scores) / of_answer).sum(dim=-1) / embedded[..., -2]


class NCIScore(_Centred):
    """``<w_answer, x - mean> / |x - mean| + a |x|_1``: how close a query is to the weights of the answer, and how far from 0.

    Args:
        norm_weight: ``a``, at least 0.

    Raises:
        ValueError: a weight below 0.
    """

    uses_scores = False

    def __init__(self, norm_weight: float = 1e-4) -> None:
        super().__init__()
        if not 0 <= norm_weight < math.inf:
            raise ValueError(f"NCIScore: norm_weight must be at least 0, got {norm_weight}")
        self.norm_weight = norm_weight

    def forward(self, scores: Tensor, learned: Tensor, embedded: Tensor) -> Tensor:
        """Return the score ``(E, Q)``."""
        products = embedded[..., :-2] @ learned.mT
        aligned = products.gather(-1, scores.argmax(dim=-1, keepdim=True)).squeeze(-1) / embedded[..., -2]
        return aligned + self.norm_weight * embedded[..., -1]

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"norm_weight={self.norm_weight}"
