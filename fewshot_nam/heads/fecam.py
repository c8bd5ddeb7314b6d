"""FeCAM: the Mahalanobis distance to each class mean under the class's own covariance, shrunk and brought to unit variances.

    x~ = unit(sqrt(x));  S_c = covariance of x~ over class c;  S'_c = S_c + a1 d I + a2 o (1 - I)
    score = -(x~ - m_c)^T N_c^-1 (x~ - m_c),   N_c = S'_c / (sd sd^T),  sd^2 = diag S'_c

``d`` and ``o`` are the mean of the diagonal and of the rest of ``S_c``. ``calibrated`` (C-FeCAM) moves statistics of new classes
towards those of base classes that are like them: ``m'_c = 0.9 m_c + 0.1 sum_b w_cb m_b`` and ``S_c + sum_b w_cb S_b``.

Sources: Goswami et al., "FeCAM: Exploiting the Heterogeneity of Class Distributions in Exemplar-Free Continual Learning" (2023);
Goswami et al., "Calibrating Higher-Order Statistics for Few-Shot Class-Incremental Learning with Pre-trained Vision Transformers"
(2024). A class with one image, or known by a prototype alone, has no covariance of its own: the identity takes its place.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewshot_nam.heads.base import Head, Support
from fewshot_nam.heads.power_norm import power_normalise
from fewshot_nam.heads.teen import base_weights, calibrated_means
from fewshot_nam.memory.primitives import unit

_FLAT = 1e-9  # deviations up to there are none
_NEARLY_SINGULAR = 1e-3  # of what is left of the diagonal, beside the mean variance


class LowRank(NamedTuple):
    """``N^-1 = T (I - U^T B U) T`` of a class with ``n`` images, fewer than features.

    Attributes:
        scales: diagonal of ``T`` ``(E, 1, D)``, float64.
        factor: ``U`` ``(E, n + 1, D)``, float64.
        inner: ``B`` ``(E, n + 1, n + 1)``, float64.
    """

    scales: Tensor
    factor: Tensor
    inner: Tensor

    def distance(self, apart: Tensor) -> Tensor:
        """Return ``x^T N^-1 x`` ``(E, Q)`` for ``x`` of ``apart`` ``(E, Q, D)``."""
        scaled = apart.double() * self.scales
        within = scaled @ self.factor.mT
        return (scaled.square().sum(dim=-1) - ((within @ self.inner) * within).sum(dim=-1)).to(apart)


class Gaussians(NamedTuple):
    """What is read: means ``(E, C, D)``, and ``N^-1`` of base classes ``(B, D, D)`` and of new ones, ``(E, D, D)`` where dense."""

    means: Tensor
    base: Tensor
    novel: list[Tensor | LowRank]


class FeCAMHead(Head):
    """Scores minus squared distances, as at the top of this file.

    It keeps a ``(D, D)`` matrix for each base class that it learned from images, and for each new class with as many images as
    features; ``calibrated``, for every new class.

    Args:
        diagonal: ``a1``, at least 0; above 0 for classes with fewer images than features, whose ``S_c`` alone is singular.
        off_diagonal: ``a2``, at least 0.
        calibrated: C-FeCAM: statistics of new classes are calibrated by base classes whose images were learned.
        share: of the calibrated mean that comes from base classes.
        temperature: of the softmax over base classes.

    Raises:
        ValueError: a number outside its range.

    Example:
        >>> FeCAMHead().write(torch.eye(2), ["cat", "dog"]).predict(torch.tensor([1.0, 3.0]))
        'dog'
    """

    base_covariances: Tensor
    base_precisions: Tensor

    def __init__(
        self,
        *,
        diagonal: float = 1.0,
        off_diagonal: float = 1.0,
        calibrated: bool = False,
        share: float = 0.1,
        temperature: float = 16.0,
    ) -> None:
        for name, value in (("diagonal", diagonal), ("off_diagonal", off_diagonal)):
            if not 0 <= value < math.inf:
                raise ValueError(f"FeCAMHead: {name} must be at least 0 and finite, got {value}")
        if not 0 <= share <= 1 or not temperature > 0:
            raise ValueError(
                f"FeCAMHead: share must be from 0 to 1 and temperature above 0, got {share} and {temperature}"
            )
        super().__init__()
        self.diagonal, self.off_diagonal, self.calibrated = diagonal, off_diagonal, calibrated
        self.share, self.temperature = share, temperature
        self.register_buffer("base_covariances", torch.empty(0, 0, 0))  # empty unless calibrated
        self.register_buffer("base_precisions", torch.empty(0, 0, 0))

    @property
    def power_normalised(self) -> bool:
        """Whether power means are better base prototypes for ``write_base`` than means."""
        return True

    def _embed(self, features: Tensor) -> Tensor:
        return unit(power_normalise(features))

    @property
    def _knows_base_images(self) -> bool:
        return len(self.base_precisions) > 0

    def _learn_base_images(self, features: Tensor, targets: Tensor) -> None:
        covariances, precisions = [], []
        for label in torch.unique(targets).tolist():
            covariance = _covariance(self._embed(features[targets == label]))
            covariances.append(covariance)
            precisions.append(self._precisions(covariance))
        known = len(self._base_classes) - len(precisions)
        none = [self._no_precision(features)] * (known - len(self.base_precisions))
        if self.calibrated:
            zeros = [torch.zeros_like(each) for each in none]
            self.base_covariances = torch.stack([*self.base_covariances, *zeros, *covariances])
        self.base_precisions = torch.stack([*self.base_precisions, *none, *precisions])
        self._outdate()

    def forget(self, labels: Any) -> FeCAMHead:
        """Forget classes, as ``Head.forget``."""
        with self._lock:
            before = list(self._base_classes)
            super().forget(labels)
            still = set(self._base_classes)
            stay = [i for i, name in enumerate(before) if name in still]
            for name in ("base_covariances", "base_precisions"):
                matrices = getattr(self, name)
                setattr(self, name, matrices[[i for i in stay if i < len(matrices)]])
        return self

    def _no_precision(self, like: Tensor) -> Tensor:
        return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)

    def _precisions(self, covariances: Tensor) -> Tensor:
        """Return ``N^-1`` of covariances ``(..., D, D)``; the identity where nothing varies."""
        width = covariances.shape[-1]
        identity = torch.eye(width, dtype=covariances.dtype, device=covariances.device)
        diagonal = covariances.diagonal(dim1=-2, dim2=-1)
        rest = covariances.sum(dim=(-2, -1)) - diagonal.sum(dim=-1)
        own = self.diagonal * diagonal.mean(dim=-1)[..., None, None] * identity
        off = self.off_diagonal * (rest / max(width * (width - 1), 1))[..., None, None] * (1 - identity)
        shrunk = covariances + own + off
        deviations = shrunk.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
        scales = deviations.unsqueeze(-1) * deviations.unsqueeze(-2)
        flat = (deviations <= _FLAT).any(dim=-1)[..., None, None]
        # In float64: the covariance of a few shots is nearly singular.
        normalised = torch.where(flat, identity, shrunk / torch.where(flat, 1.0, scales))
        return torch.linalg.inv(normalised.double()).to(covariances)

    def _learn(self, support: Support) -> Gaussians:
        known = self.base_precisions.to(support.features)
        missing = self._no_precision(support.features).expand(len(support.base) - len(known), -1, -1)
        means, novel = self._new_classes(support.base, support)
        known = torch.cat([known.reshape(-1, *missing.shape[1:]), missing]) if len(missing) else known
        return Gaussians(support.with_base(support.base, means), known, novel)

    def _learn_more(self, learned: Gaussians, added: Support) -> Gaussians:
        means, novel = self._new_classes(learned.means[0, : len(learned.base)], added)
        return Gaussians(torch.cat([learned.means, means], dim=1), learned.base, [*learned.novel, *novel])

    def _new_classes(self, base: Tensor, support: Support) -> tuple[Tensor, list[Tensor | LowRank]]:
        """Return means ``(E, N, D)`` and ``N^-1`` of the new classes of ``support``, for means of base classes ``(B, D)``."""
        means, weights = support.class_means(support.features), None
        if self.calibrated and len(self.base_covariances):
            of_images = base[: len(self.base_covariances)]
            weights = base_weights(means, of_images, self.temperature)
            means = calibrated_means(means, of_images, self.share, self.temperature)
        novel: list[Tensor | LowRank] = []
        # One at a time: on the way a class takes ten times what stays of it.
        for i in range(means.shape[1]):
            shots = support.features[:, support.targets == len(support.base) + i]
            precision: Tensor | LowRank | None = self._low_rank(shots) if weights is None else None
            if precision is None:
                covariance = _covariance(shots)
                if weights is not None:
                    of_base = self.base_covariances.to(means)
                    covariance = covariance + torch.einsum("eb,bij->eij", weights[:, i], of_base)
                precision = self._precisions(covariance)
            novel.append(precision)
        return means, novel

    def _low_rank(self, features: Tensor) -> LowRank | None:
        """Return ``N^-1`` of a class with images ``(E, n, D)``; ``None`` where the matrix itself is smaller, or nearly singular."""
        count, width = features.shape[-2:]
        if count + 1 >= width:
            return None
        apart = features.double() - features.double().mean(dim=-2, keepdim=True)
        apart = apart / max(count - 1, 1) ** 0.5
        # S is A^T A for A the rows of ``apart``. S' is A^T A + rest I + off 1 1^T.
        variances = apart.square().sum(dim=-2)
        diagonal = self.diagonal * variances.mean(dim=-1)
        sums = apart.sum(dim=-1).square().sum(dim=-1) - variances.sum(dim=-1)
        off = self.off_diagonal * sums / (width * (width - 1))
        rest = diagonal - off
        shrunk = variances + diagonal.unsqueeze(-1)
        flat = (shrunk <= _FLAT**2).any(dim=-1)
        deviations = torch.where(flat.unsqueeze(-1), 1.0, shrunk).sqrt()  # a root of 0 has no gradient
        if bool(((rest <= _NEARLY_SINGULAR * variances.mean(dim=-1)) & ~flat).any()):
            return None
        rest = torch.where(flat, 1.0, rest)
        # Woodbury's identity for U = (A; 1 1 1 ...), with ``off`` as the factor of its last row.
        factor = torch.cat([apart, torch.ones_like(apart[:, :1])], dim=-2)
        factors = torch.cat([torch.ones_like(apart[..., 0]), off.unsqueeze(-1)], dim=-1).diag_embed()
        identity = torch.eye(count + 1, dtype=factor.dtype, device=factor.device)
        inner, failed = torch.linalg.solve_ex(rest[:, None, None] * identity + factors @ factor @ factor.mT, factors)
        if bool(failed.any()):  # a matrix that is singular itself
            return None
        scales = deviations / rest.sqrt().unsqueeze(-1)
        return LowRank(scales.unsqueeze(-2), factor, torch.where(flat[:, None, None], 0.0, inner))

    def _score(self, learned: Gaussians, query: Tensor) -> Tensor:
        return self._score_more(learned, query, 0)

    def _score_more(self, learned: Gaussians, query: Tensor, first: int) -> Tensor:
        """Return the scores ``(E, Q, C - first)`` of classes from column ``first`` on; no later class changes them."""
        scores = []
        for column in range(first, learned.means.shape[1]):
            apart = query - learned.means[:, column : column + 1]
            novel = column - len(learned.base)
            precision = learned.base[column] if novel < 0 else learned.novel[novel]
            if isinstance(precision, LowRank):
                scores.append(-precision.distance(apart))
            else:
                scores.append(-((apart @ precision) * apart).sum(dim=-1))
        return torch.stack(scores, dim=-1) if scores else query.new_empty(*query.shape[:-1], 0)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        width, known = self.feature_dim or 0, min(len(self.base_precisions), len(self.base))
        return dict.fromkeys(("base_precisions", "base_covariances"), (known, width, width))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in ("base_covariances", "base_precisions"):
            loaded = state_dict.get(prefix + name)
            if loaded is not None:
                setattr(self, name, getattr(self, name).new_empty(loaded.shape, dtype=loaded.dtype))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Return the constants."""
        return (
            f"diagonal={self.diagonal}, off_diagonal={self.off_diagonal}, calibrated={self.calibrated}, share={self.share}, "
            f"temperature={self.temperature}, {super().extra_repr()}"
        )


def _covariance(features: Tensor) -> Tensor:
    """Return the covariance ``(..., D, D)`` of features ``(..., n, D)``, divided by ``n - 1``; 0 for one feature."""
    apart = features.double() - features.double().mean(dim=-2, keepdim=True)
    return (apart.mT @ apart / max(features.shape[-2] - 1, 1)).to(features)
