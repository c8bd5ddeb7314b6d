"""RanPAC: ridge regression onto one-hot classes over fixed random features; and ACIL, which computes it recursively.

    phi(x) = relu(x P), P ~ N(0, 1) fixed;   G = sum phi phi^T;   Q = sum phi y^T;   score = phi(x)^T (G + lambda I)^-1 Q

The inverse is kept for the images of base classes, and every further image changes it by the recursion of ACIL,
``R <- R - R X^T (I + X R X^T)^-1 X R``: the classifier is that of all images at once, and memory does not grow with them. Features
that have a mean make ``G`` ill-conditioned, and a chosen ``lambda`` is small beside it: all of it is computed and kept in float64.

``calibrated`` (C-RanPAC) learns a new class, in place of its shots, from features drawn from the normal distribution with mean
``0.9 m_c + 0.1 sum_b w_cb m_b`` and covariance ``(S_c + sum_b w_cb S_b) / 2``; it keeps ``G + lambda I`` itself. ``balanced`` (AIR)
counts every image with one over the number of images of its class.

Sources: McDonnell et al., "RanPAC: Random Projections and Pre-trained Models for Continual Learning" (2023); Goswami et al.,
"Calibrating Higher-Order Statistics for Few-Shot Class-Incremental Learning with Pre-trained Vision Transformers" (2024); Zhuang
et al., "ACIL: Analytic Class-Incremental Learning with Absolute Memorization and Privacy Protection" (2022); Fang et al., "AIR:
Analytic Imbalance Rectifier for Continual Learning" (2024). As in the second source, ``lambda`` is chosen once, on base images.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewshot_nam.heads.base import Head, Support, places_in_class
from fewshot_nam.heads.fecam import _covariance
from fewshot_nam.heads.power_norm import power_normalise
from fewshot_nam.heads.teen import base_weights, calibrated_means
from fewshot_nam.heads.validation import as_labels, check_random_features
from fewshot_nam.memory.primitives import unit

_RIDGES = tuple(10.0**power for power in range(-8, 9))
_ROWS = 4096
_DRAWN = 800  # features for each new class of C-RanPAC
_SMALLEST_RIDGE = 1e-12  # of those that are chosen, as a share of the trace of G: float64 has 16 digits


class Regression(NamedTuple):
    """What is read.

    Attributes:
        weights: ``(E, M, C)``, of features after ``phi``.
        products: ``(M, M)``, ``G + lambda I``, in float64, where classes are learned from drawn features; ``None`` elsewhere.
        answers: ``(M, C)``, ``Q``; likewise.
    """

    weights: Tensor
    products: Tensor | None = None
    answers: Tensor | None = None


class RanPACHead(Head):
    """Scores that ridge regression over random features gives, as at the top of this file.

    Classes that are known by a prototype alone count as one image. Base images are learned at once, before anything else, and are
    then forgotten only all together (learn the others again).

    Args:
        width: ``M``, how many random features; 0 for the features themselves.
        ridge: ``lambda``, above 0; ``None`` chooses it on base images, between 1e-8 and 1e8, by the squared error on a fifth of
            those of each class, one at least. Without base images, or where most classes have one, which these cannot speak for, it
            is the mean of the diagonal of ``G`` then.
        calibrated: C-RanPAC.
        balanced: AIR.
        power_norm: power-normalise features and scale them to length 1 first.
        share: of the calibrated mean that comes from base classes.
        temperature: of the softmax over base classes.
        seed: of ``P``.

    Raises:
        ValueError: a number outside its range; in ``write_base_images`` a ridge that is lost beside the images.

    Example:
        >>> RanPACHead(100).write(torch.eye(2), ["cat", "dog"]).predict(torch.tensor([1.0, 3.0]))
        'dog'
    """

    _exact = ("inverse", "products", "base_weights", "chosen_ridge")
    inverse: Tensor
    products: Tensor
    base_weights: Tensor
    base_means: Tensor
    base_covariances: Tensor
    chosen_ridge: Tensor

    def __init__(
        self,
        width: int = 2000,
        *,
        ridge: float | None = None,
        calibrated: bool = False,
        balanced: bool = False,
        power_norm: bool = False,
        share: float = 0.1,
        temperature: float = 16.0,
        seed: int = 0,
    ) -> None:
        check_random_features("RanPACHead: width", width, 0)
        if ridge is not None and not 0 < ridge < math.inf:
            raise ValueError(f"RanPACHead: ridge must be above 0, got {ridge}")
        super().__init__()
        self.width, self.ridge, self.calibrated, self.balanced, self.power_norm = (
            width,
            ridge,
            calibrated,
            balanced,
            power_norm,
        )
        self.share, self.temperature, self.seed = share, temperature, seed
        for name, shape in _BASE_BUFFERS.items():
            self.register_buffer(name, torch.empty((0,) * shape))
        self._projection: Tensor | None = None

    @property
    def power_normalised(self) -> bool:
        """Whether power means are better base prototypes for ``write_base`` than means."""
        return self.power_norm

    def _expanded(self, features: Tensor) -> Tensor:
        """Return ``phi`` of features ``(..., D)``, ``(..., M)``."""
        if self.power_norm:
            features = unit(power_normalise(features))
        if not self.width:
            return features
        projection = self._projection
        if projection is None or projection.shape[0] != features.shape[-1]:
            generator = torch.Generator().manual_seed(self.seed)
            projection = self._projection = normal_numbers((features.shape[-1], self.width), generator)
        return torch.relu(features @ projection.to(features))

    @property
    def _summed(self) -> int:
        """How many base classes were learned from images; they come first."""
        return self.base_weights.shape[-1]

    def write_base_images(self, features: Tensor, labels: Any) -> RanPACHead:
        """Learn the images of base classes, as ``Head.write_base_images``; they come first and all at once."""
        if self._summed:
            known = set(self.classes)
            again = next((name for name in labels if name in known), None)
            more = f"{again!r} is known already" if again is not None else "base images were learned already"
            raise ValueError(f"write_base_images: {more}; make a new head and learn all base images at once")
        if self._base_classes:
            raise ValueError(
                "write_base_images: there are base classes already; learn the images of base classes first"
            )
        return super().write_base_images(features, labels)

    @property
    def _knows_base_images(self) -> bool:
        return self._summed > 0

    def _learn_base_images(self, features: Tensor, targets: Tensor) -> None:
        counts = torch.bincount(targets)
        each = 1 / counts[targets].double() if self.balanced else torch.ones_like(targets, dtype=torch.float64)
        held_out = _fifth_of_each(targets)
        ridge = self.ridge
        parts = [self._sums(features, targets, each, part) for part in (~held_out, held_out)]
        products, answers = parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]
        if ridge is None and 2 * int((counts > 1).sum()) < len(counts):
            ridge = float(products.diagonal().mean())
        elif ridge is None:
            ridge = max(_best_ridge(*parts[0], *parts[1]), _SMALLEST_RIDGE * float(products.trace()))
        products.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(products)
        if int(failed):
            raise ValueError(f"write_base_images: a ridge of {ridge:g} is lost beside these images: take a larger one")
        if self.calibrated:
            self.products = products
        else:
            self.inverse = torch.cholesky_inverse(factor)
        self.base_weights = torch.cholesky_solve(answers, factor)
        self.chosen_ridge = torch.tensor([ridge], dtype=torch.float32, device=features.device)
        if self.calibrated:
            some = [features[targets == label] for label in range(len(counts))]
            self.base_means = torch.stack([rows.mean(dim=0) for rows in some])
            self.base_covariances = torch.stack([_covariance(rows) for rows in some])
        self._outdate()

    def _sums(self, features: Tensor, targets: Tensor, each: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``G`` and ``Q`` of a part of the images, in float64: a small ridge would be below the rounding of others."""
        width = self.width or features.shape[-1]
        products = torch.zeros(width, width, dtype=torch.float64, device=features.device)
        answers = torch.zeros(int(targets.max()) + 1, width, dtype=torch.float64, device=features.device)
        for rows in torch.split(part.nonzero().flatten(), _ROWS):
            phi = self._expanded(features[rows]).double() * each[rows].sqrt().unsqueeze(-1)
            products += phi.mT @ phi
            answers.index_add_(0, targets[rows], phi * each[rows].sqrt().unsqueeze(-1))
        return products, answers.mT

    def forget(self, labels: Any) -> RanPACHead:
        """Forget classes, as ``Head.forget``.

        Raises:
            ValueError: also for a base class that was learned from images.
        """
        with self._lock:
            names = set(as_labels(labels, None))
            if names & set(self._base_classes[: self._summed]):
                raise ValueError(
                    "forget: this head keeps no images of base classes, and their sum cannot be taken apart: learn the others again"
                )
            super().forget(names)
        return self

    def _learn(self, support: Support) -> Regression:
        known = self._summed
        prototypes, features = support.base[known:], support.features
        if self.calibrated and known:
            return self._learn_drawn(support, known)
        keys = support.with_base(prototypes, features)
        targets = torch.cat([torch.arange(known, len(support.base), device=support.targets.device), support.targets])
        return self._solved(keys, targets, support.columns, known)

    def _learn_drawn(self, support: Support, known: int) -> Regression:
        products = self.products.double()
        answers = products @ self.base_weights.double()
        phi = self._expanded(support.base[known:]).double()
        regression = Regression(phi, products + phi.mT @ phi, torch.cat([answers, phi.mT], dim=1))
        return self._with_drawn(regression, support)

    def _learn_more(self, learned: Regression, added: Support) -> Regression | None:
        return None if learned.products is None else self._with_drawn(learned, added)

    def _with_drawn(self, learned: Regression, support: Support) -> Regression:
        """Return the regression with the written classes of ``support`` ``(E = 1)``, each as features drawn by its statistics."""
        base, products, answers = self.base_means.to(support.features), learned.products, learned.answers
        assert products is not None
        assert answers is not None
        generator = torch.Generator().manual_seed(self.seed)
        noise = normal_numbers((_DRAWN, base.shape[-1]), generator).to(base)
        for column in range(len(support.base), support.columns):
            shots = support.features[0, support.targets == column]
            mean = shots.mean(dim=0)
            weights = base_weights(mean, base, self.temperature)
            covariance = torch.einsum("b,bij->ij", weights, self.base_covariances.to(base)) + _covariance(shots)
            values, axes = torch.linalg.eigh(covariance / 2)
            # By the symmetric root: another processor may give axes of the other sign.
            drawn = ((noise @ axes) * values.clamp_min(0).sqrt()) @ axes.mT
            phi = self._expanded(calibrated_means(mean, base, self.share, self.temperature) + drawn).double()
            each = 1 / _DRAWN if self.balanced else 1.0
            products = products + each * phi.mT @ phi
            answers = torch.cat([answers, each * phi.sum(dim=0).unsqueeze(-1)], dim=1)
        factor, failed = torch.linalg.cholesky_ex(products)
        if int(failed):
            raise ValueError(
                "the ridge is lost beside the sums of base images, or an older version kept these in float32: learn the base "
                "images again, with a larger ridge if one was given"
            )
        weights = torch.cholesky_solve(answers, factor).to(support.features)
        return Regression(weights.unsqueeze(0), products, answers)

    def _solved(self, keys: Tensor, targets: Tensor, columns: int, known: int) -> Regression:
        """Return the weights for images ``(E, n, D)`` of columns ``targets`` ``(n,)``, beside ``known`` base classes."""
        phi = self._expanded(keys).double()
        values = torch.nn.functional.one_hot(targets, columns).to(phi)
        if self.balanced:
            each = (1 / torch.bincount(targets, minlength=columns)[targets].to(phi)).sqrt().unsqueeze(-1)
            phi, values = phi * each, values * each
        values = values.expand(len(phi), -1, -1)
        if not known:
            size = phi.square().sum(dim=(-2, -1)) / phi.shape[-1]
            ridge = size.clamp_min(1e-9) if self.ridge is None else torch.full_like(size, self.ridge)
            if phi.shape[1] > phi.shape[2]:  # the same by the smaller of the two systems
                return Regression(_damped_solve(phi.mT @ phi, ridge, phi.mT @ values).to(keys))
            return Regression((phi.mT @ _damped_solve(phi @ phi.mT, ridge, values)).to(keys))
        inverse, before = self.inverse.to(phi), self.base_weights.to(phi)
        before = torch.cat([before, before.new_zeros(len(before), columns - known)], dim=1)
        of_keys = phi @ inverse  # the recursion of ACIL, for all further images at once
        gain = _damped_solve(of_keys @ phi.mT, phi.new_ones(len(phi)), values - phi @ before)
        return Regression((before + of_keys.mT @ gain).to(keys))

    def _score(self, learned: Regression, query: Tensor) -> Tensor:
        return self._expanded(query) @ learned.weights

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        features, known = self.feature_dim or 0, min(self.base_weights.shape[-1], len(self.base))
        width = self.width or features
        return {
            "inverse": (width, width),
            "products": (width, width),
            "base_weights": (width, known),
            "base_means": (known, features),
            "base_covariances": (known, features, features),
            "chosen_ridge": (1,),
        }

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self._add_products(state_dict, prefix)
        for name in _BASE_BUFFERS:
            loaded = state_dict.get(prefix + name)
            if loaded is not None:
                setattr(self, name, getattr(self, name).new_empty(loaded.shape, dtype=loaded.dtype))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _add_products(self, state_dict: dict[str, Any], prefix: str = "") -> None:
        """Add what a state of an older version lacks: it kept the inverse of ``products``."""
        inverse = state_dict.get(prefix + "inverse")
        if inverse is None or prefix + "products" in state_dict:
            return
        state_dict[prefix + "products"] = inverse.new_empty(0, 0)
        if self.calibrated and inverse.dim() == 2 and inverse.shape[0] == inverse.shape[1]:
            found, failed = torch.linalg.inv_ex(inverse.double())
            if not int(failed):  # otherwise it is refused as damaged
                state_dict[prefix + "products"], state_dict[prefix + "inverse"] = found, inverse.new_empty(0, 0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._add_products(self._buffers)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_projection": None}

    def extra_repr(self) -> str:
        """Return the settings."""
        return (
            f"width={self.width}, ridge={self.ridge}, balanced={self.balanced}, power_norm={self.power_norm}, "
            f"calibrated={self.calibrated}, share={self.share}, temperature={self.temperature}, seed={self.seed}, "
            f"{super().extra_repr()}"
        )


def _damped_solve(products: Tensor, ridge: Tensor, values: Tensor) -> Tensor:
    """Return ``(products + ridge I)^-1 values`` of ``(E, n, n)``, ``(E,)`` and ``(E, n, C)``."""
    damped = products.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(ridge.unsqueeze(-1))
    return torch.linalg.solve(damped, values)


def normal_numbers(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return numbers drawn from N(0, 1), the same for all default dtypes and devices: files hold the seed alone."""
    return torch.randn(size, generator=generator, dtype=torch.float32, device="cpu")


def _fifth_of_each(targets: Tensor) -> Tensor:
    """Return ``(n,)`` bool: of the images of each class the fifth, the tenth and so on; the last of two to four."""
    place, of_class = places_in_class(targets), torch.bincount(targets)[targets]
    return torch.where(of_class < 5, (place == of_class - 1) & (of_class > 1), place % 5 == 4)


def _best_ridge(products: Tensor, answers: Tensor, other: Tensor, wanted: Tensor) -> float:
    """Return the ridge for sums ``(M, M)`` and ``(M, C)`` of some images with the least squared error on those of others.

    Ridges are tried from the largest down, each by one Cholesky factor, until the error has risen twice: below the best one it
    only rises, and an eigendecomposition of 10,000 features would take an hour.
    """
    best, least, risen = _RIDGES[-1], math.inf, 0
    for candidate in reversed(_RIDGES):
        damped = products.clone()
        damped.diagonal().add_(candidate)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if int(failed):  # too small a ridge for float64
            break
        weights = torch.cholesky_solve(answers, factor)
        error = float((weights * (other @ weights)).sum() - 2 * (weights * wanted).sum())
        best, least, risen = (candidate, error, 0) if error < least else (best, least, risen + 1)
        if risen == 2:
            break
    return best


_BASE_BUFFERS = {
    "inverse": 2,
    "products": 2,
    "base_weights": 2,
    "base_means": 2,
    "base_covariances": 3,
    "chosen_ridge": 1,
}
