"""KLDA: linear discriminant analysis over random Fourier features, that is with a Gaussian kernel.

    phi(x) = sqrt(2 / M) cos(P x + b), P ~ N(0, gamma), b ~ U(0, 2 pi);   S = pooled covariance of phi within classes
    score_c = m_c^T S^-1 phi(x) - m_c^T S^-1 m_c / 2

Sources: Momeni et al., "Continual Learning Using a Kernel-Based Method Over Foundation Models" (2024); Rahimi and Recht, "Random
Features for Large-Scale Kernel Machines" (2007). Features are power-normalised and scaled to length 1 first. ``S`` is shrunk
towards the identity, without which five images of a class cannot be learned alone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fewshot_nam.heads.base import Head, Support
from fewshot_nam.heads.power_norm import power_normalise
from fewshot_nam.heads.ranpac import normal_numbers
from fewshot_nam.heads.validation import check_random_features
from fewshot_nam.memory.primitives import unit

_ROWS = 4096


class KLDAHead(Head):
    """Scores as at the top of this file.

    They hold what all classes have in common: beside it differences are lost to the 7 digits of float32 where ``gamma`` or
    ``ridge`` is much smaller than the defaults, or features differ little beside their mean. Give float64 features then.

    Args:
        width: ``M``, how many random features, at least 1.
        gamma: of the kernel ``exp(-gamma |x - y|^2 / 2)`` between features of length 1, above 0.
        ridge: share of the mean variance that is added to ``S``, above 0.
        seed: of the random features.

    Raises:
        ValueError: a number outside its range.

    Example:
        >>> KLDAHead().write(torch.eye(2), ["cat", "dog"]).predict(torch.tensor([1.0, 3.0]))
        'dog'
    """

    _exact = ("scatter", "freedom")  # half of the digits are no covariance any more, and no count
    base_means: Tensor
    scatter: Tensor
    freedom: Tensor

    def __init__(self, width: int = 1000, *, gamma: float = 1.0, ridge: float = 1e-2, seed: int = 0) -> None:
        check_random_features("KLDAHead: width", width, 1)
        for name, value in (("gamma", gamma), ("ridge", ridge)):
            if not 0 < value < math.inf:
                raise ValueError(f"KLDAHead: {name} must be above 0, got {value}")
        super().__init__()
        self.width, self.gamma, self.ridge, self.seed = width, gamma, ridge, seed
        # Means of phi of the first base classes, and products of phi within these.
        self.register_buffer("base_means", torch.empty(0, width, dtype=torch.float32))
        self.register_buffer("scatter", torch.empty(0, 0, dtype=torch.float32))
        self.register_buffer("freedom", torch.zeros((), dtype=torch.float32))
        self._projection: tuple[Tensor, Tensor] | None = None

    @property
    def power_normalised(self) -> bool:
        """Whether power means are better base prototypes for ``write_base`` than means."""
        return True

    def _embed(self, features: Tensor) -> Tensor:
        directions = unit(power_normalise(features))
        if self._projection is None or len(self._projection[0]) != directions.shape[-1]:
            generator = torch.Generator().manual_seed(self.seed)
            drawn = normal_numbers((directions.shape[-1], self.width), generator)
            phases = torch.rand(self.width, generator=generator, dtype=torch.float32, device="cpu")
            self._projection = math.sqrt(self.gamma) * drawn, 2 * math.pi * phases
        slopes, phases = (part.to(directions) for part in self._projection)
        return math.sqrt(2 / self.width) * torch.cos(directions @ slopes + phases)

    @property
    def _knows_base_images(self) -> bool:
        return len(self.base_means) > 0

    def _learn_base_images(self, features: Tensor, targets: Tensor) -> None:
        known = len(self.base_means)
        new = len(self._base_classes) - int(targets.min())
        if len(self._base_classes) - new != known:  # classes known by a prototype alone come between
            before = self.base[known : len(self._base_classes) - new]
            self.base_means = torch.cat([self.base_means, self._embed(before)])
        its = targets - int(targets.min())
        counts = torch.bincount(its, minlength=new).unsqueeze(-1)
        sums = torch.zeros(new, self.width, dtype=torch.float64, device=features.device)
        products = torch.zeros(self.width, self.width, dtype=torch.float64, device=features.device)
        for rows in torch.split(torch.arange(len(features)), _ROWS):
            phi = self._embed(features[rows]).double()
            sums.index_add_(0, its[rows], phi)
        means = sums / counts
        for rows in torch.split(torch.arange(len(features)), _ROWS):
            # About means: of sums of squares nothing may be left.
            apart = self._embed(features[rows]).double() - means[its[rows]]
            products += apart.mT @ apart
        self.base_means = torch.cat([self.base_means, means.to(self.base_means)])
        self.scatter = products.float() + (self.scatter if len(self.scatter) else 0)
        self.freedom = self.freedom + len(features) - new
        self._outdate()

    def forget(self, labels: Any) -> KLDAHead:
        """Forget classes, as ``Head.forget``; what images of base classes said of the covariance stays."""
        with self._lock:
            before = list(self._base_classes)
            super().forget(labels)
            left = set(self._base_classes)
            stay = [i for i, name in enumerate(before[: len(self.base_means)]) if name in left]
            self.base_means = self.base_means[stay]
        return self

    def _learn(self, support: Support) -> tuple[Tensor, Tensor]:
        """Return weights ``(E, C, M)`` and offsets ``(E, C)``."""
        phi, known = support.features, self.base_means.to(support.features)
        means = support.class_means(phi)
        apart = (phi - means[:, support.targets - len(support.base)]).double()
        every = support.with_base(torch.cat([known, support.base[len(known) :]]), means).double()
        freedom = phi.shape[1] - means.shape[1]
        if len(self.scatter) or phi.shape[1] > self.width:
            scatter = apart.mT @ apart
            if len(self.scatter):
                scatter, freedom = scatter + self.scatter.to(scatter), freedom + int(self.freedom)
            covariance = scatter / max(freedom, 1)
            ridge = self._added(covariance.diagonal(dim1=-2, dim2=-1).mean(dim=-1))
            factor = torch.linalg.cholesky(covariance + ridge * _identity(covariance))
            weights = torch.cholesky_solve(every.mT, factor).mT
        else:  # the same by the smaller of the two systems
            apart = apart / math.sqrt(max(freedom, 1))
            ridge = self._added(apart.square().sum(dim=(-2, -1)) / self.width)
            products = apart @ apart.mT
            factor = torch.linalg.cholesky(products + ridge * _identity(products))
            weights = (every - torch.cholesky_solve(apart @ every.mT, factor).mT @ apart) / ridge
        return weights, (weights * every).sum(dim=-1) / 2

    def _added(self, size: Tensor) -> Tensor:
        """Return what is added to the diagonal of ``S`` ``(E, 1, 1)`` for mean variances ``(E,)``."""
        return self.ridge * size.clamp_min(1e-3 / self.width)[:, None, None]

    def _score(self, learned: tuple[Tensor, Tensor], query: Tensor) -> Tensor:
        # What all classes have in common is large where features have a mean: float32 would lose their differences.
        return (query.double() @ learned[0].mT - learned[1].unsqueeze(-2)).to(query)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        known = min(len(self.base_means), len(self.base))
        return {"base_means": (known, self.width), "scatter": (self.width, self.width)}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in ("base_means", "scatter"):
            loaded = state_dict.get(prefix + name)
            if loaded is not None:
                setattr(self, name, getattr(self, name).new_empty(loaded.shape, dtype=loaded.dtype))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_projection": None}

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"width={self.width}, gamma={self.gamma}, ridge={self.ridge}, seed={self.seed}, {super().extra_repr()}"


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
