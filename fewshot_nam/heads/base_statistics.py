"""What a head may know of base classes: ``BaseStatistics``, the classes' mean features and what they have in common.

Base classes are classes with many images, such as those that the backbone was trained on. They serve a head in two ways: their
mean is subtracted from features, and their prototypes are the cohort of score normalisation (``fewshot_nam.heads.score_norm``).

Legend: ``B`` base classes, ``D`` features, ``n`` images.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fewshot_nam._deprecation import warn_renamed
from fewshot_nam.heads.power_norm import power_normalise
from fewshot_nam.heads.validation import as_labels, checked_vectors
from fewshot_nam.memory.primitives import unit

_CHUNK_ELEMENTS = 1 << 22  # numbers converted to float64 at a time
InitT = TypeVar("InitT", bound=Callable[..., None])


@dataclass(frozen=True, eq=False, repr=False)
class BaseStatistics:
    """Statistics of the features of base classes.

    ``from_features`` computes them. ``from_prototypes`` and ``from_mean`` are for when less is known.

    Args:
        prototypes: ``(B, D)``, the mean feature of each class. ``B`` may be 0, which leaves only ``mean``.
        power_means: ``(B, D)``, the power mean of each class: the mean of the power-normalised features (signed square roots),
            squared again with its sign. Heads that power-normalise features use it as the prototype.
        mean: ``(D,)``, the mean over all base images; where the images are unknown, the mean of ``prototypes``.
        counts: ``(B,)`` long, how many images each class has; ``None`` where that is unknown.
        within_covariance: ``(D, D)``, how images of one class differ: the covariance of their directions about the class's mean
            direction, pooled over the classes. The direction of an image is its power-normalised feature, minus the mean of the
            power-normalised power means, scaled to length 1. ``None`` where that is unknown.

    Raises:
        TypeError: a tensor is not of floats (``counts``: not of integers).
        ValueError: shapes that do not fit together, NaN or infinite numbers, a prototype or power mean of zeros, or counts
            below 1.

    Example:
        >>> base = BaseStatistics.from_features(torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 4.0]]), ["cat", "cat", "dog"])
        >>> base
        BaseStatistics(classes=2, feature_dim=2)
        >>> base.prototypes.tolist(), base.counts.tolist()
        ([[2.0, 0.0], [0.0, 4.0]], [2, 1])
    """

    prototypes: Tensor
    power_means: Tensor
    mean: Tensor
    counts: Tensor | None = None
    within_covariance: Tensor | None = None

    def __post_init__(self) -> None:
        mean = checked_vectors(self.mean, "mean", zero_allowed=True)
        if mean.dim() != 1:
            raise ValueError(f"mean must be (D,), got shape {tuple(mean.shape)}")
        for name in ("prototypes", "power_means"):
            rows = checked_vectors(getattr(self, name), name, width=len(mean))
            if rows.dim() != 2:
                raise ValueError(f"{name} must be (B, D), got shape {tuple(rows.shape)}")
        if self.power_means.shape != self.prototypes.shape:
            raise ValueError(
                f"prototypes and power_means must have the same shape, got {tuple(self.prototypes.shape)} and "
                f"{tuple(self.power_means.shape)}"
            )
        if self.counts is not None:
            if not isinstance(self.counts, Tensor) or self.counts.dtype != torch.long:
                given = self.counts.dtype if isinstance(self.counts, Tensor) else type(self.counts).__name__
                raise TypeError(f"counts must be a long tensor, got {given}")
            if self.counts.shape != (len(self),):
                raise ValueError(
                    f"counts must be ({len(self)},), one a base class, got shape {tuple(self.counts.shape)}"
                )
            if bool((self.counts < 1).any()):
                raise ValueError(f"counts must be at least 1, got {int(self.counts.min())}")
        if self.within_covariance is not None:
            shape = tuple(checked_vectors(self.within_covariance, "within_covariance", zero_allowed=True).shape)
            if shape != (len(mean), len(mean)):
                raise ValueError(f"within_covariance must be ({len(mean)}, {len(mean)}), got shape {shape}")
        for name, tensor in self.tensors().items():
            object.__setattr__(self, name, tensor.detach())

    @classmethod
    def from_features(cls, features: Tensor, labels: Any) -> BaseStatistics:
        """Return the statistics of features of base classes; sums are taken in float64, the results are float32.

        Args:
            features: ``(n, D)``, one row an image.
            labels: ``n`` ints or strings, the class of each image. The rows of the statistics are the classes in sorted order.

        Raises:
            TypeError: features that are not a tensor of floats, or labels that are not all ints or all strings.
            ValueError: no features, NaN, infinite or zero features, another shape, or not as many labels as features.
        """
        if checked_vectors(features, "features").dim() != 2 or not len(features):
            raise ValueError(f"features must be (n, D) with n at least 1, got shape {tuple(features.shape)}")
        names = as_labels(labels, len(features))
        if len({isinstance(name, str) for name in names}) > 1:
            raise TypeError("from_features: labels must be all ints or all strings, got both")
        number = {name: i for i, name in enumerate(sorted(set(names)))}  # type: ignore[type-var]
        targets = torch.tensor([number[name] for name in names])
        return cls.from_targets(features, targets, len(number))

    @classmethod
    def from_targets(cls, features: Tensor, targets: Tensor, classes: int) -> BaseStatistics:
        """Return what ``from_features`` returns, for features that were checked before.

        Args:
            features: ``(n, D)``; may be mapped from a file. They are read twice, in chunks.
            targets: ``(n,)`` long on the CPU, from 0 to ``classes - 1``, each at least once.
            classes: ``B``.
        """
        sums = torch.zeros(2, classes, features.shape[1], dtype=torch.float64)
        for some, its in _chunks(features, targets):
            sums[0].index_add_(0, its, some.double())
            sums[1].index_add_(0, its, power_normalise(some.double()))
        counts = torch.bincount(targets, minlength=classes)
        means, roots = sums / counts.unsqueeze(-1)
        power_means = (roots * roots.abs()).float()
        base = cls(
            prototypes=means.float(),
            power_means=power_means,
            mean=(sums[0].sum(dim=0) / len(features)).float(),
            counts=counts,
            within_covariance=_within_covariance(features, targets, power_means) if len(features) > classes else None,
        )
        return base.to(features.device)

    @classmethod
    def from_prototypes(cls, prototypes: Tensor) -> BaseStatistics:
        """Return the statistics of classes of which only the mean features ``(B, D)`` are known.

        They stand for the power means too, and ``mean`` is their mean.

        Raises:
            TypeError: not a tensor of floats.
            ValueError: NaN, infinite or zero rows, or another shape.
        """
        if checked_vectors(prototypes, "prototypes").dim() != 2 or not len(prototypes):
            raise ValueError(f"prototypes must be (B, D) with B at least 1, got shape {tuple(prototypes.shape)}")
        return cls(prototypes, prototypes, prototypes.mean(dim=0))

    @classmethod
    def from_mean(cls, mean: Tensor) -> BaseStatistics:
        """Return the statistics of no class, with only the mean feature ``(D,)`` known.

        Raises:
            TypeError: not a tensor of floats.
            ValueError: NaN or infinite numbers, or another shape.
        """
        if checked_vectors(mean, "mean", zero_allowed=True).dim() != 1:
            raise ValueError(f"mean must be (D,), got shape {tuple(mean.shape)}")
        none = mean.new_empty(0, len(mean))
        return cls(none, none, mean)

    def __len__(self) -> int:
        """Return ``B``, the number of base classes."""
        return len(self.prototypes)

    def __repr__(self) -> str:
        return f"BaseStatistics(classes={len(self)}, feature_dim={self.feature_dim})"

    @property
    def feature_dim(self) -> int:
        """``D``, the width of the features."""
        return len(self.mean)

    def to(self, device: torch.device | str) -> BaseStatistics:
        """Return the same statistics on a device."""
        moved = copy.copy(self)  # without the checks, which these tensors have passed
        for name, tensor in self.tensors().items():
            object.__setattr__(moved, name, tensor.to(device))
        return moved

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are known by name, for saving. ``BaseStatistics(**tensors)`` makes the same again."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in known.items() if tensor is not None}


def _chunks(features: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    rows = max(1, _CHUNK_ELEMENTS // features.shape[1])
    for some, its in zip(torch.split(features.detach(), rows), torch.split(targets, rows), strict=True):
        yield some.cpu(), its


def _within_covariance(features: Tensor, targets: Tensor, power_means: Tensor) -> Tensor:
    """Return ``BaseStatistics.within_covariance`` ``(D, D)``.

    Products of a chunk are taken in float32 and summed in float64, since for wide features they are most of the work.
    """
    centre = power_normalise(power_means).mean(dim=0)
    width, classes = features.shape[1], len(power_means)
    squares = torch.zeros(width, width, dtype=torch.float64)
    sums = torch.zeros(classes, width, dtype=torch.float64)
    for some, its in _chunks(features, targets):
        directions = unit(power_normalise(some) - centre)
        squares += directions.mT @ directions
        sums.index_add_(0, its, directions.double())
    counts = torch.bincount(targets, minlength=classes).unsqueeze(-1)
    scatter = squares - (sums / counts).mT @ sums
    return (scatter / (len(features) - classes)).float()


class StoredBaseStatistics(nn.Module):
    """Base statistics as buffers of a head: they move with it and are saved with it, and are replaced, never written to.

    Args:
        base: ``None`` stores nothing: all buffers are empty then.
    """

    shares_buffers = True  # with snapshots of the head
    prototypes: Tensor
    power_means: Tensor
    mean: Tensor
    counts: Tensor
    within_covariance: Tensor

    def __init__(self, base: BaseStatistics | None = None) -> None:
        super().__init__()
        known = {} if base is None else base.tensors()
        empty = {
            "prototypes": torch.empty(0, 0),
            "power_means": torch.empty(0, 0),
            "mean": torch.empty(0),
            "counts": torch.empty(0, dtype=torch.long),
            "within_covariance": torch.empty(0, 0),
        }
        for name, nothing in empty.items():
            self.register_buffer(name, known[name].clone() if name in known else nothing)

    def __len__(self) -> int:
        """Return how many base classes are stored."""
        return len(self.prototypes)

    @property
    def value(self) -> BaseStatistics | None:
        """The statistics; ``None`` where nothing is stored."""
        if not self.mean.numel():
            return None
        known = dict(self.named_buffers())
        unknown = [name for name in ("counts", "within_covariance") if not known[name].numel()]
        return BaseStatistics(**{name: tensor for name, tensor in known.items() if name not in unknown})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # The number of classes is part of what is loaded, so the buffers take its shapes.
        for name, buffer in list(self.named_buffers()):
            loaded = state_dict.get(prefix + name)
            if loaded is not None:
                dtype = buffer.dtype if loaded.shape == buffer.shape else loaded.dtype
                setattr(self, name, buffer.new_empty(loaded.shape, dtype=dtype))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        try:
            if len(self.prototypes) and not self.mean.numel():
                raise ValueError("prototypes without their mean")
            _ = self.value
        except (ValueError, TypeError) as error:
            raise ValueError(f"base statistics: this state is damaged: {error}") from None


def base_from_old_words(mean: Tensor | None, background: Tensor | None) -> BaseStatistics | None:
    """Return what the parameters ``mean=`` and ``background=`` of version 0.1 say, as ``BaseStatistics``."""
    if background is None:
        return None if mean is None else BaseStatistics.from_mean(mean)
    base = BaseStatistics.from_prototypes(background)
    return base if mean is None else BaseStatistics(base.prototypes, base.power_means, mean)


def accepts_old_base_words(init: InitT) -> InitT:
    """Let a constructor take ``mean=`` and ``background=`` of version 0.1 in place of ``base=``, with a warning.

    Both may be tensors or arrays. A tensor given as ``base`` is one of the two by its shape: the mean ``(D,)`` or the background
    ``(B, D)``.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        old = {word: kwargs.pop(word, None) for word in ("mean", "background")}
        old = {word: _as_tensor(value) for word, value in old.items() if value is not None}
        if not old and not any(isinstance(value, Tensor) for value in (*args, kwargs.get("base"))):
            return init(self, *args, **kwargs)
        given = signature.bind(self, *args, **kwargs)
        base = given.arguments.get("base")
        if isinstance(base, Tensor):
            old |= {"mean" if base.dim() == 1 else "background": base}
        elif base is not None and old:
            raise TypeError(f"{type(self).__name__}: {' and '.join(old)} are old words for base=: give base alone")
        if len(old) > 1:
            raise ValueError(f"{type(self).__name__}: give mean or background, not both")
        for word in old:
            maker = "from_mean" if word == "mean" else "from_prototypes"
            warn_renamed(f"{type(self).__name__}: {word}=", f"base=BaseStatistics.{maker}(...)")
        if old:
            given.arguments["base"] = base_from_old_words(old.get("mean"), old.get("background"))
        return init(*given.args, **given.kwargs)

    return call  # type: ignore[return-value]


def _as_tensor(values: Any) -> Tensor:
    return values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)
