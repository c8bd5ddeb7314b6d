"""The contract of every few-shot head: write classes, forget them, score features; one picture at a time or by episodes.

A head keeps what it was given (support features, prototypes of base classes) as buffers and derives the rest from it. So a
class can be added or forgotten at any moment and in any order, and the head is the one that would have been built afresh.

Legend: ``E`` episodes, ``N`` ways, ``K`` shots, ``Q`` queries, ``D`` features, ``n`` support features, ``B`` base classes,
``C = B + N`` columns of scores, base classes first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

Label = int | str
HeadT = TypeVar("HeadT", bound="Head")


class Support(NamedTuple):
    """What a head learns from, for ``E`` episodes at once.

    Attributes:
        features: ``(E, n, D)``, at least one of every class from column ``B`` to ``C - 1``, which first occur in that order.
        targets: ``(n,)`` long, the column of each feature.
        base: ``(B, D)``, prototypes of classes known beforehand, columns ``0`` to ``B - 1``; ``B`` may be 0.
        columns: ``C``, the number of classes.
    """

    features: Tensor
    targets: Tensor
    base: Tensor
    columns: int

    def one_hot(self) -> Tensor:
        """Return ``(n, C)``, 1 where a feature is of a class and 0 elsewhere, in the dtype of the features."""
        columns = torch.arange(self.columns, device=self.targets.device)
        return (self.targets.unsqueeze(-1) == columns).to(self.features.dtype)

    def class_means(self, features: Tensor) -> Tensor:
        """Return ``(E, N, D)``, the mean over each written class of ``features`` ``(E, n, D)``, rows as ``self.features``."""
        novel = self.columns - len(self.base)
        if features.shape[1] == novel:  # one shot each, in the order of the columns
            return features
        members = self.one_hot()[:, len(self.base) :]
        return (members / members.sum(dim=0)).mT @ features

    def with_base(self, base_rows: Tensor, rows: Tensor) -> Tensor:
        """Return ``(E, C, D)``: ``base_rows`` ``(B, D)``, the same in every episode, above ``rows`` ``(E, N, D)``."""
        return torch.cat([base_rows.expand(len(rows), -1, -1), rows], dim=1) if len(base_rows) else rows


class Head(nn.Module):
    """A classifier that learns classes from a few features each, without training.

    Subclasses give ``_learn``, what is derived from the support (prototypes, a memory, ...), and ``_score``.

    Args:
        mean: ``(D,)``, subtracted from every feature first (say the mean feature of the base classes); ``None`` for none.
    """

    support: Tensor
    targets: Tensor
    base: Tensor
    mean: Tensor
    acceptance_threshold: Tensor

    def __init__(self, mean: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("support", torch.empty(0, 0))
        self.register_buffer("targets", torch.empty(0, dtype=torch.long))
        self.register_buffer("base", torch.empty(0, 0))
        self.register_buffer(
            "mean", torch.empty(0) if mean is None else _checked(mean, "mean", zero_allowed=True).clone()
        )
        self.register_buffer("acceptance_threshold", torch.tensor(math.nan))
        self._base_classes: list[Label] = []
        self._written_classes: list[Label] = []
        self._derived: Any = None

    # What subclasses give.

    def _learn(self, support: Support) -> Any:
        """Return whatever ``_score`` needs, derived from the support (already centred)."""
        raise NotImplementedError

    def _score(self, learned: Any, query: Tensor) -> Tensor:
        """Return scores ``(E, Q, C)`` of queries ``(E, Q, D)`` (already centred)."""
        raise NotImplementedError

    # Learning and forgetting.

    @property
    def classes(self) -> list[Label]:
        """The known classes in the order of the score columns: base classes first, then in order of writing."""
        return [*self._base_classes, *self._written_classes]

    @property
    def feature_dim(self) -> int | None:
        """Width of the features, or ``None`` before anything has told."""
        known = next((buffer for buffer in (self.support, self.base, self.mean) if buffer.numel()), None)
        return None if known is None else known.shape[-1]

    @property
    def threshold(self) -> float | None:
        """A query is accepted when its largest score reaches this number; ``None`` until it is set. See ``predict``."""
        value = float(self.acceptance_threshold)
        return None if math.isnan(value) else value

    @threshold.setter
    def threshold(self, value: float | None) -> None:
        if value is not None and not math.isfinite(value):
            raise ValueError(f"threshold must be a finite number or None, got {value}")
        self.acceptance_threshold.fill_(math.nan if value is None else value)

    def write(self: HeadT, features: Tensor, labels: Label | Iterable[Label] | Tensor) -> HeadT:
        """Learn features of new classes, or more features of classes that were written before; return the head.

        Args:
            features: ``(n, D)``, or ``(D,)`` for one.
            labels: ``n`` ints or strings; a single one is the class of all features.

        Raises:
            ValueError: NaN, infinite or zero features, another width than before, no features, not as many labels as
                features, or a label of a base class (its prototype is fixed: forget it first).
            TypeError: a label is neither an int nor a string.
        """
        features = self._checked_features(features, "features")
        names = _as_labels(labels, len(features))
        base_classes = set(self._base_classes)
        for name in names:
            if name in base_classes:
                raise ValueError(
                    f"write: {name!r} is a base class with a fixed prototype; forget it first to learn it anew"
                )
        written = list(dict.fromkeys([*self._written_classes, *names]))
        column = {name: i for i, name in enumerate(written)}
        targets = torch.tensor([column[name] for name in names], device=self.targets.device)
        self.support = _appended(self.support, features, self.targets.device)
        self.targets = torch.cat([self.targets, targets])
        self._written_classes = written
        self._derived = None
        return self

    def write_base(self: HeadT, prototypes: Tensor, labels: Iterable[Label] | Tensor) -> HeadT:
        """Take over classes that are known beforehand by one prototype each, such as base classes; return the head.

        Args:
            prototypes: ``(B, D)``, mean features (not of unit length, not centred).
            labels: ``B`` ints or strings, none of them known yet.

        Raises:
            ValueError: as ``write``, or a label that is repeated or known already.
            TypeError: a label is neither an int nor a string.
        """
        prototypes = self._checked_features(prototypes, "prototypes")
        names = _as_labels(labels, len(prototypes))
        known = set(self.classes)
        for name in names:
            if name in known:
                raise ValueError(
                    f"write_base: class {name!r} is known already; forget it first, or give it another name"
                )
            known.add(name)
        self.base = _appended(self.base, prototypes, self.targets.device)
        self._base_classes = self._base_classes + names
        self._derived = None
        return self

    def forget(self: HeadT, labels: Label | Iterable[Label] | Tensor) -> HeadT:
        """Forget classes: the head is then the one that would never have seen them. Return the head.

        Raises:
            ValueError: a label was never written; nothing is forgotten then.
        """
        names = set(_as_labels(labels, None))
        unknown = [name for name in names if name not in self.classes]
        if unknown:
            raise ValueError(f"forget: class {unknown[0]!r} was never written; there are: {_listed(self.classes)}")
        stay = torch.tensor(
            [name not in names for name in self._written_classes], device=self.targets.device, dtype=torch.bool
        )
        kept = stay[self.targets] if len(self.targets) else torch.empty(0, dtype=torch.bool, device=self.targets.device)
        renumbered = stay.long().cumsum(0) - 1
        self.support = self.support[kept]
        self.targets = renumbered[self.targets[kept]]
        base_stay = [i for i, name in enumerate(self._base_classes) if name not in names]
        self.base = self.base[base_stay]
        self._written_classes = [name for name in self._written_classes if name not in names]
        self._base_classes = [self._base_classes[i] for i in base_stay]
        self._derived = None
        return self

    # Scoring.

    def forward(self, features: Tensor) -> Tensor:
        """Return scores ``(..., C)`` of features ``(..., D)``, columns as in ``classes``; larger means more like the class.

        Raises:
            ValueError: no class is known yet, NaN, infinite or zero features, or another width than that of the classes.
        """
        if not self.classes:
            raise ValueError(f"{type(self).__name__} knows no class yet: call write(features, labels) first")
        checked = self._checked_features(features, "features", keep_shape=True)
        flat = checked.reshape(1, -1, checked.shape[-1])
        scores = self._score(self._current(), self._centred(flat))
        return scores.reshape(*checked.shape[:-1], len(self.classes))

    def predict(self, features: Tensor, unknown: Label | None = None) -> Label | list[Label]:
        """Return the best class of each feature.

        Args:
            features: ``(n, D)``, or ``(D,)`` for one.
            unknown: what to answer where the largest score is below ``threshold``; ``None`` never refuses.

        Returns:
            A list of ``n`` labels; for ``(D,)`` one label.

        Raises:
            ValueError: as calling the head, more than two dimensions, or ``unknown`` given while ``threshold`` is not set.
        """
        if features.dim() > 2:
            raise ValueError(f"predict: features must be (n, D) or (D,), got shape {tuple(features.shape)}")
        if unknown is not None and self.threshold is None:
            raise ValueError("predict: unknown= needs a threshold to refuse below: set head.threshold first")
        with torch.no_grad():
            best, column = self(features).max(dim=-1)
        classes = self.classes
        answers = [classes[i] for i in column.reshape(-1).tolist()]
        if unknown is not None:
            refused = (best < self.acceptance_threshold).reshape(-1).tolist()
            answers = [unknown if no else answer for answer, no in zip(answers, refused, strict=True)]
        return answers[0] if features.dim() == 1 else answers

    def score_episodes(
        self, support: Tensor, query: Tensor, base: Tensor | None = None, *, check: bool = True
    ) -> Tensor:
        """Return the scores ``(E, Q, B + N)`` of many episodes at once; what was written into the head plays no part.

        For every episode the result is that of a head with the same settings after ``write_base(base)`` and ``write`` of the
        episode's support, class by class.

        Args:
            support: ``(E, N, K, D)``.
            query: ``(E, Q, D)``.
            base: ``(B, D)``, prototypes of base classes that share the label space; ``None`` for none.
            check: look for NaN, infinite and zero features; leave out only for features that were checked before.

        Raises:
            ValueError: shapes that do not fit, an empty support set, or NaN, infinite or zero features.
        """
        if support.dim() != 4 or query.dim() != 3 or support.shape[0] != query.shape[0]:
            raise ValueError(
                "score_episodes: needs support (E, N, K, D) and query (E, Q, D) of the same episodes, "
                f"got {tuple(support.shape)} and {tuple(query.shape)}"
            )
        if not (support.shape[1] and support.shape[2]):
            raise ValueError(f"score_episodes: the support set {tuple(support.shape)} (E, N, K, D) is empty")
        if check:
            for name, features in (("support", support), ("query", query), ("base", base)):
                if features is not None:
                    _checked(features, name, width=len(self.mean) or support.shape[-1])
        episodes, ways, shots, width = support.shape
        base = support.new_empty(0, width) if base is None else base
        targets = len(base) + torch.arange(ways, device=support.device).repeat_interleave(shots)
        features = self._centred(support.reshape(episodes, ways * shots, width))
        learned = self._learn(Support(features, targets, self._centred(base), len(base) + ways))
        return self._score(learned, self._centred(query))

    def _current(self) -> Any:
        """Return what ``_learn`` derives from the buffers; kept until they change, unless gradients must flow through it."""
        if self._derived is not None:
            return self._derived
        trainable = any(parameter.requires_grad for parameter in self.parameters())
        # A tensor made in inference mode could never take part in autograd later.
        with torch.inference_mode(False), torch.set_grad_enabled(trainable and torch.is_grad_enabled()):
            width = self.support.shape[-1] or self.base.shape[-1]
            written, base = (buffer.reshape(len(buffer), width) for buffer in (self.support, self.base))
            features = self._centred(written).unsqueeze(0)
            derived = self._learn(Support(features, len(base) + self.targets, self._centred(base), len(self.classes)))
        if not trainable:
            self._derived = derived
        return derived

    def _centred(self, features: Tensor) -> Tensor:
        features = features if features.dtype in (torch.float32, torch.float64) else features.float()
        return features - self.mean.to(features) if self.mean.numel() else features

    def _checked_features(self, features: Tensor, name: str, keep_shape: bool = False) -> Tensor:
        features = _checked(features, name, width=self.feature_dim)
        if self.mean.numel():
            _checked(self._centred(features), f"{name} minus the mean")
        if keep_shape:
            return features
        if features.dim() not in (1, 2) or not features.numel():
            raise ValueError(f"{name} must be (n, D) or (D,) with n at least 1, got shape {tuple(features.shape)}")
        return features.reshape(-1, features.shape[-1])

    # State: everything learned is in state_dict, as tensors, so that it can be saved without pickling.

    def get_extra_state(self) -> Tensor:
        """Return the class names as UTF-8 JSON in a uint8 tensor."""
        names = {"base_classes": self._base_classes, "written_classes": self._written_classes}
        return torch.tensor(list(json.dumps(names).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over class names as ``get_extra_state`` gives them."""
        names = json.loads(bytes(state.tolist()))
        self._base_classes, self._written_classes = names["base_classes"], names["written_classes"]
        self._derived = None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # The number of features and classes is learned, so these buffers take the shape of what is loaded.
        for name in ("support", "targets", "base", "mean"):
            loaded, present = state_dict.get(prefix + name), getattr(self, name)
            if loaded is not None and loaded.shape != present.shape:
                setattr(self, name, present.new_empty(loaded.shape, dtype=loaded.dtype))
        self._derived = None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._derived = None
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """Say how many classes are known."""
        return f"classes={len(self.classes)}, feature_dim={self.feature_dim}, centred={bool(self.mean.numel())}"


def compete(scores: Tensor, share: float, temperature: float) -> Tensor:
    """Return ``s - share * T * log sum_c exp(s_c / T)``: scores ``(..., C)`` from which classes that compete take something.

    The same number is taken off all classes of a query, so their order and their softmax stay as they are. Share 0 leaves
    the scores, share 1 makes them log-probabilities times the temperature ``T``.
    """
    if not share:
        return scores
    return scores - share * temperature * torch.logsumexp(scores / temperature, dim=-1, keepdim=True)


def _appended(stored: Tensor, features: Tensor, device: torch.device) -> Tensor:
    """Return ``stored`` ``(n, D)`` with ``features`` below it, a normal tensor even where ``features`` came from inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        if not stored.numel():
            return features.detach().to(device).clone()
        return torch.cat([stored, features.detach().to(stored).clone()])


def _checked(features: Tensor, name: str, width: int | None = None, zero_allowed: bool = False) -> Tensor:
    """Return ``features`` ``(..., D)`` if they are finite, not zero and ``width`` wide; raise what is wrong otherwise."""
    if not isinstance(features, Tensor) or not features.is_floating_point():
        given = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"{name} must be a float tensor, got {given}")
    if features.dim() == 0 or (width is not None and features.shape[-1] != width):
        raise ValueError(f"{name} must have width {width or 'D'}, got shape {tuple(features.shape)}")
    # One pass finds NaN, infinite, overflowing and zero vectors alike: the length of each is one of them then.
    lengths = torch.linalg.vector_norm(
        features.detach(), dim=-1, dtype=torch.promote_types(features.dtype, torch.float32)
    )
    wrong = ~lengths.isfinite() if zero_allowed else ~(lengths.isfinite() & (lengths > 0))
    if bool(wrong.any()):
        where = tuple(wrong.nonzero()[0].tolist())
        vector = features[where] if where else features
        kind = "NaN" if bool(vector.isnan().any()) else "zero" if not bool(vector.any()) else "infinite (or too large)"
        raise ValueError(
            f"{name}: {int(wrong.sum())} of {wrong.numel()} vectors cannot be used; the first, at index {list(where)}, is {kind}"
        )
    return features


def _as_labels(labels: Any, count: int | None) -> list[Label]:
    """Return labels as plain ints and strings, ``count`` of them where it is given; a single one stands for all."""
    if isinstance(labels, (int, str)):
        given: Sequence[Any] = [labels] * (1 if count is None else count)
    elif hasattr(labels, "tolist"):
        given = labels.tolist()
        given = given if isinstance(given, list) else [given] * (1 if count is None else count)
    else:
        given = list(labels)
    for label in given:
        if not isinstance(label, (int, str)) or isinstance(label, bool):
            raise TypeError(f"a label must be an int or a string, got {label!r}")
    if count is not None and len(given) != count:
        raise ValueError(f"needs one label for each feature: {count} features, {len(given)} labels")
    return list(given)


def _listed(classes: list[Label], most: int = 10) -> str:
    shown = ", ".join(repr(name) for name in classes[:most])
    return f"{shown}, ... ({len(classes)})" if len(classes) > most else shown or "none"
